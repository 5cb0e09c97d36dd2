from edm_fast.cli import main

main(prog_name="edm-fast")
