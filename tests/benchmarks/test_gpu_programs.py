"""Programs that prove the CUDA code: what their statuses and their results are taken for."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_programs_end_at_their_limit_with_their_children(load, tmp_path):
    execute, log, mark = load("gpu_programs").execute, tmp_path / "log.txt", tmp_path / "survived"
    late = f"import time, pathlib; time.sleep(4); pathlib.Path({str(mark)!r}).touch()"
    program = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {late!r}])"
    with log.open("w") as file:
        assert execute([sys.executable, "-c", program], file, 2) is None
    assert "begun" in log.read_text()
    time.sleep(4)
    assert not mark.exists()


def test_a_program_gets_its_environment_and_gives_its_status(load, tmp_path):
    program = "import os, sys; sys.exit(int(os.environ['STATUS']))"
    with (tmp_path / "log.txt").open("w") as file:
        status = load("gpu_programs").execute([sys.executable, "-c", program], file, 60, {"STATUS": "3"})
    assert status == 3


XML = """<?xml version="1.0"?><testsuites><testsuite name="pytest" errors="{errors}" failures="0" skipped="1" tests="4">
<testcase name="a"/><testcase name="b"><skipped type="pytest.skip" message="{reason}"/></testcase>
</testsuite></testsuites>
"""


@pytest.fixture
def programs(load, run, monkeypatch):
    """The module, with programs that are not run: statuses by a word of the command."""
    module = load("gpu_programs")
    statuses, commands = {}, []

    def execute(command, log, limit_s, environment=None):
        commands.append(list(command))
        log.write(f"{module._PLANTED_MESSAGE}\n")
        for option in command:
            if option.startswith("--junitxml="):
                Path(option.partition("=")[2]).write_text(XML.format(errors=0, reason=module.reason))
        return next((status for word, status in statuses.items() if word in " ".join(command)), 0)

    monkeypatch.setattr(module, "execute", execute)
    monkeypatch.setattr(module, "reason", "needs two devices", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(type(run), "scratch", run.logs)
    monkeypatch.setattr(module, "statuses", statuses, raising=False)
    monkeypatch.setattr(module, "commands", commands, raising=False)
    return module


def test_tests_are_counted(programs, run, kept):
    assert programs.run_tests(run)
    found = kept("tests")
    assert found["pytest"]["tests"] == 4
    assert found["pytest"]["skipped"] == 1
    assert all(entry["good"] for entry in found.values())
    assert set(found) == {"pytest", "selfcheck", "generate"}


@pytest.mark.parametrize("word", [" --junitxml", " selfcheck", " generate"])
def test_a_failure_is_bad(programs, run, word, kept):
    programs.statuses[word] = 1
    assert not programs.run_tests(run)
    assert sum(not entry["good"] for entry in kept("tests").values()) == 1


@pytest.mark.parametrize("reason", ["no CUDA device, or no CUDA kernels in this build", "needs CUDA"])
def test_tests_that_skipped_the_device_prove_nothing(programs, run, monkeypatch, reason):
    monkeypatch.setattr(programs, "reason", reason)
    assert not programs.run_tests(run)


def test_the_reasons_for_skipping_are_those_of_the_tests():
    """The phrases that tell a skipped device are in what the tests say."""
    tests = BENCHMARKS.parent / "tests"
    for path in (
        "conftest.py",
        "samplers/test_cuda.py",
        "plan/test_device_plan.py",
        "networks/test_preconditioning.py",
    ):
        assert "no CUDA device, or no CUDA kernels" in (tests / path).read_text()
    assert "needs CUDA" in (tests / "plan" / "test_capture.py").read_text()


@pytest.fixture
def seen(programs):
    """The planted bug is seen."""
    programs.statuses["planted_bug.cu"] = 0
    programs.statuses["/planted"] = 9
    return programs


def test_clean_sanitizers_are_good(seen, run, kept):
    assert seen.sanitize(run)
    found = kept("sanitize")
    assert set(found) == {"planted bug", "memcheck", "racecheck", "initcheck", "synccheck"}
    assert found["racecheck"]["kernels"] == found["racecheck"]["tests"] == "clean"
    assert {command[2] for command in seen.commands if command[0] == "compute-sanitizer"} == set(seen.SANITIZERS)


def test_errors_that_a_tool_finds_are_bad(seen, run, kept):
    seen.statuses["racecheck"] = 9
    assert not seen.sanitize(run)
    assert kept("sanitize")["racecheck"]["kernels"] == "errors"
    assert kept("sanitize")["memcheck"]["good"]


def test_a_network_at_full_size_is_for_memcheck_and_our_kernels_alone(seen, run, kept):
    seen.statuses["forward"] = 9
    assert not seen.sanitize(run)
    found = kept("sanitize")
    assert found["memcheck"]["network"] == "errors"
    assert [name for name in seen.SANITIZERS if "network" in found[name]] == ["memcheck"]
    [command] = [command for command in seen.commands if "forward" in command]
    assert command[command.index("--kernel-regex") + 1] == "kns=edm_fast"


def test_tests_may_take_too_long_under_a_tool_but_the_kernels_must_end(seen, run, kept):
    seen.statuses["pytest"] = None
    assert seen.sanitize(run, ["memcheck"])
    assert kept("sanitize")["memcheck"]["tests"] == "unfinished"
    seen.statuses["gpu.py"] = None
    assert not seen.sanitize(run, ["memcheck"])


@pytest.mark.parametrize("case", ["not seen", "not named", "no tool"])
def test_a_blind_sanitizer_proves_nothing(seen, run, monkeypatch, case, kept):
    if case == "not seen":
        seen.statuses["/planted"] = 0
    elif case == "not named":
        monkeypatch.setattr(seen, "_PLANTED_MESSAGE", "something else")
        monkeypatch.setattr(seen, "execute", lambda command, log, *rest: 0 if command[0] == "nvcc" else 9)
    else:
        monkeypatch.setattr(shutil, "which", lambda name: None)
    assert seen.sanitize(run)
    [(name, entry)] = kept("sanitize").items()
    assert name == "planted bug"
    assert entry["seen"] is False


def test_the_tests_of_small_shapes_exist(load):
    """Each word of the sanitizers' selection is in the name of some test."""
    text = "".join(path.read_text() for path in (BENCHMARKS.parent / "tests" / "ops").glob("*.py"))
    for word in load("gpu_programs")._SMALL:
        assert any(word in line for line in text.splitlines() if line.startswith("def test_")), word
