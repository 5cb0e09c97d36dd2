"""Tries an installed edm_fast as its user would: python tests/packaging/smoke.py [--no-compiler].

Nothing but the package and what it depends on is needed, and nothing of the source tree is used. Ends with a message
and status 1 at the first thing that is wrong.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

COMPILERS = ("cc", "gcc", "c++", "g++", "clang", "clang++", "cmake", "ninja", "nvcc")
OPENMP_RUNTIMES = ("libgomp", "libomp", "libiomp5")


def say(text: str) -> None:
    sys.stdout.write(f"smoke: {text}\n")
    sys.stdout.flush()


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"smoke: WRONG: {message}")


def check_no_compiler() -> None:
    found = [path for path in map(shutil.which, COMPILERS) if path]
    require(not found, f"PATH has {', '.join(found)}")
    say("there is no compiler on PATH")


def check_installed() -> None:
    """The import is of an installed wheel, one version stands everywhere, and the files are those of a user."""
    import edm_fast
    from edm_fast.ops import backends

    distribution = importlib.metadata.distribution("edm-fast")
    package = Path(edm_fast.__file__).parent
    installed = Path(str(distribution.locate_file("edm_fast")))
    require(package.resolve() == installed.resolve(), f"imported from {package}, installed in {installed}")

    version = distribution.version
    public = version.partition("+")[0]
    require(edm_fast.__version__ == public, f"__version__ is {edm_fast.__version__}, the distribution is {version}")
    compiled = backends.extension().version
    require(compiled == version, f"the compiled module is {compiled}, the distribution is {version}")

    files = {str(file) for file in distribution.files or []}
    require(any(file.endswith(".dist-info/licenses/LICENSE") for file in files), "the licence file is missing")
    require("edm_fast/models/digits.safetensors" in files, "the shipped model is missing")
    own = ("edm_fast/", "../../../bin/edm-fast", f"edm_fast-{version}.dist-info/")
    foreign = sorted(file for file in files if not file.startswith(own))
    require(not foreign, f"the wheel also installs {', '.join(foreign[:5])}")
    say(f"edm-fast {version} in {package}, {len(files)} files")


def run(*arguments: str) -> str:
    """The output of the installed program."""
    program = Path(sys.executable).with_name("edm-fast")
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True)
    output = done.stdout + done.stderr
    require(done.returncode == 0, f"edm-fast {' '.join(arguments)} ended with {done.returncode}:\n{output}")
    return output


def check_program() -> None:
    from PIL import Image

    import edm_fast

    require(edm_fast.__version__ in run("--version"), "edm-fast --version does not give the version")
    require("cpu kernels" in run("info"), "edm-fast info does not name the kernels")
    require("all passed" in run("selfcheck"), "edm-fast selfcheck does not pass")
    run("generate", "--seeds", "0-3", "--steps", "8", "--outdir", "images")
    made = sorted(Path("images").rglob("*.png"))
    require(len(made) == 4, f"edm-fast generate made {len(made)} images, not 4")
    distinct = {Image.open(path).tobytes() for path in made}
    require(len(distinct) == 4, f"edm-fast generate made {len(distinct)} different images, not 4")
    say("edm-fast --version, info, selfcheck and generate")


def check_kernels() -> None:
    """Noise has the reference's bits, with more than one thread, by the OpenMP runtime that torch uses."""
    import torch

    import edm_fast

    torch.set_num_threads(2)
    shape, seeds = (3, 64, 64), range(16)
    made = edm_fast.randn(shape, seeds, backend="cpu")
    wanted = edm_fast.randn(shape, seeds, backend="reference")
    require(torch.equal(made, wanted), "the CPU kernel's noise is not the reference's")
    say("noise is the reference's to the bit")

    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    runtimes = sorted(path for path in mapped if Path(path).name.startswith(OPENMP_RUNTIMES))
    # With two of them, a child of fork() would be kept out of the dead threads of one, and wait for those of the other.
    require(len(runtimes) == 1, f"one OpenMP runtime is wanted, loaded are {', '.join(runtimes) or 'none'}")
    say(f"one OpenMP runtime: {runtimes[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-compiler", action="store_true", help="also require that PATH has no compiler")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as elsewhere:
        os.chdir(elsewhere)
        if arguments.no_compiler:
            check_no_compiler()
        check_installed()
        check_program()
        check_kernels()
        os.chdir("/")
    say("all is well")


if __name__ == "__main__":
    main()
