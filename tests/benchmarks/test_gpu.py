"""Runs of measurements for a GPU: the file of figures, turns, stages and their names, and the script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tolerance import assert_same_bits

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_figures_are_kept_with_their_machine_and_commit(run):
    run.commit = "abc1234"
    run.__post_init__()
    run.keep("ops", "a case", {"ratio": 2.0})
    data = json.loads(run.output.read_text())
    assert set(data["machine"]) == {"gpu", "driver", "torch", "cuda", "cudnn", "edm_fast"}
    entry = run.kept("ops", "a case")
    assert entry == {"ratio": 2.0, "seed": 5, "commit": "abc1234", "date": entry["date"]}
    assert run.kept("ops", "another") is None


def test_figures_of_another_machine_are_refused_before_anything_is_measured(run):
    run.keep("ops", "a case", {})
    run._machine = {**run._machine, "driver": "1.2.3"}
    with pytest.raises(ValueError, match="use another file"):
        run.check_output()


def test_earlier_figures_are_taken_over_if_they_go_together(run, tmp_path, capsys):
    earlier = tmp_path / "earlier.json"
    for machine, wanted in ({"gpu": "another"}, False), (run._machine, True):
        earlier.write_text(json.dumps({"title": "", "machine": machine, "rows": {"ops": {"a case": {}}}}))
        run.take_over(earlier)
        assert (run.kept("ops", "a case") is not None) == wanted
    earlier.write_text(json.dumps({"title": "", "machine": run._machine, "rows": {}}))
    run.take_over(earlier)
    assert run.kept("ops", "a case") == {}


def test_a_turn_gives_the_seconds_of_one_call(load):
    calls = []
    turn = load("gpu_run").self_timing(lambda: calls.append(0), lambda function: function() or 0.001)
    warm = len(calls)
    assert turn() == pytest.approx(0.001 / 30)
    assert len(calls) == warm + 30


def test_flags_of_cudnn_are_put_back(load):
    before = torch.backends.cudnn.allow_tf32
    seen = []

    def fail():
        with load("gpu_run").cudnn(allow_tf32=not before):
            seen.append(torch.backends.cudnn.allow_tf32)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [not before]
    assert torch.backends.cudnn.allow_tf32 is before


def test_without_a_gpu_a_dry_run_says_what_it_would_do(load, monkeypatch, capsys, tmp_path):
    gpu, programs = load("gpu"), load("gpu_programs")
    listed = "tests/ops/test_randn.py: 22\ntests/ops/test_resample.py: 7\ntests/plan/test_device_plan.py: 26\n"
    monkeypatch.setattr(
        programs.subprocess, "run", lambda *args, **options: subprocess.CompletedProcess(args, 0, listed)
    )
    assert gpu.main(["all", "--dry-run", "--output", str(tmp_path / "none.json")]) == 0
    printed = capsys.readouterr().out
    for stage in ("ceilings", "bits", "tests", "images", "sanitize", "ops", "networks", "sampling"):
        assert f"== {stage}, which needs a GPU\nwould: " in printed
    assert "29 tests of tests/ops" in printed
    assert "group_norm_silu 512 × 256×32×32 bfloat16" in printed
    assert "adm:512: 512 × 3×8×8 bfloat16" in printed
    assert "== summary\nnothing has been measured" in printed
    assert not (tmp_path / "none.json").exists()


def test_without_a_gpu_a_stage_is_refused(load, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="^--device: "):
        load("gpu").main(["ceilings", "--output", str(tmp_path / "gpu.json"), "--logs", str(tmp_path)])


@pytest.mark.parametrize(
    "given", [["ops", "attention"], ["networks", "vgg:1"], ["sanitize", "leakcheck"], ["bits", "noise"], ["all", "adm"]]
)
def test_a_name_that_a_stage_does_not_have_is_refused(load, capsys, given):
    with pytest.raises(SystemExit):
        load("gpu").main([*given, "--dry-run"])
    assert f"got {given[1]}" in capsys.readouterr().err.replace("'", "")


def test_stages_run_by_name_and_say_what_failed(load, monkeypatch, tmp_path, capsys):
    gpu = load("gpu")
    done = []

    def stage(name, good):
        return gpu.Stage(lambda run, names: done.append((name, names)) or good, lambda _: (), lambda names: None)

    monkeypatch.setattr(gpu, "STAGES", {"good": stage("good", True), "bad": stage("bad", False)})
    monkeypatch.setattr(gpu, "ALL", ("good", "bad"))
    options = ["--device", "cpu", "--output", str(tmp_path / "gpu.json"), "--logs", str(tmp_path)]
    assert gpu.main(["good", "a", *options]) == 0
    assert gpu.main(["all", *options]) == 1
    assert done == [("good", ["a"]), ("good", []), ("bad", [])]
    assert "not all was well in: bad" in capsys.readouterr().out


def test_a_forward_runs_for_the_sanitizers(load, run):
    assert load("gpu_faults").run_forward(run, ["digits:1"])


def test_stages_and_processes_do_not_share_what_was_compiled(load, monkeypatch, tmp_path):
    gpu = load("gpu")
    seen = []

    def note(run, names):
        seen.append((os.environ["TORCHINDUCTOR_CACHE_DIR"], os.environ.get("TRITON_CACHE_DIR")))
        os.environ["TRITON_CACHE_DIR"] = "of the compiler, from the first stage on"
        return True

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "another's")
    monkeypatch.setenv("TRITON_CACHE_DIR", "another's")
    monkeypatch.setattr(gpu, "STAGES", {name: gpu.Stage(note, lambda _: (), lambda names: None) for name in "ab"})
    monkeypatch.setattr(gpu, "ALL", ("a", "b"))
    assert gpu.main(["all", "--device", "cpu", "--output", str(tmp_path / "gpu.json"), "--logs", str(tmp_path)]) == 0
    folders, triton = zip(*seen, strict=True)
    assert triton == (None, None)
    assert len({*folders, "another's"}) == 3


def test_every_kernel_runs_for_the_sanitizers(load, run):
    assert load("gpu").run_kernels(run)
    assert not run.output.exists()


def test_new_data_in_every_run(load, tmp_path):
    gpu = load("gpu")
    options = ["kernels", "--device", "cpu", "--logs", str(tmp_path)]
    seeds = {gpu.begin(gpu.arguments(options)).seed for _ in range(2)}
    assert len(seeds) == 2
    run = gpu.begin(gpu.arguments([*options, "--seed", "7"]))
    assert run.seed == 7
    assert_same_bits(torch.randn(3, generator=run.generator()), torch.randn(3, generator=run.generator()))


def test_the_script_runs_dry_without_a_gpu():
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OUT": "/nonexistent"}
    command = ["bash", str(BENCHMARKS / "gpu.sh"), "--dry-run"]
    for arguments in (["build"], ["images", "adm"]):
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"== {arguments[0]}, which needs a GPU\nwould: " in done.stdout
    assert done.stdout.count("would: ") == 1
