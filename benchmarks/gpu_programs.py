"""Other programs that prove the CUDA code: its tests by pytest, the installation's own checks, compute-sanitizer."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from gpu_rows import SANITIZERS
from gpu_run import ROOT, Run

FOLDERS = ("tests/ops", "tests/networks", "tests/plan", "tests/samplers", "tests/compat", "tests/training")
_TESTS_LIMIT_S = 300
# With pytest-xdist; beyond a few they wait for one device.
_TEST_PROCESSES = 8

# Tests under compute-sanitizer: small shapes, every kernel, no captures, which its allocations would break.
_SMALL = ("by_hand", "layouts", "empty", "own_noise", "few_channels", "does_not_depend_on_its_batch")
SANITIZED = f"cuda and not attention and ({' or '.join(_SMALL)})"
# Each tool runs twice, memcheck three times.
_SANITIZER_LIMIT_S = 100
_ERRORS_FOUND = 9
_PLANTED_MESSAGE = "Invalid __global__ write"


def pytest_command(folders: Sequence[str], selection: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "pytest", *folders, "-k", selection, "-p", "no:cacheprovider", *options]


def execute(
    command: Sequence[str], log: TextIO, limit_s: float, environment: Mapping[str, str] | None = None
) -> int | None:
    """Run a program, its output into a file; its status, or None if it was ended, with its children, at the limit."""
    log.write(f"$ {' '.join(command)}\n")
    log.flush()
    with subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    ) as process:
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None


def tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def counted(results: Path) -> dict[str, Any]:
    """Numbers of tests in pytest's XML, and the reasons of those that were skipped."""
    root = xml.etree.ElementTree.parse(results).getroot()
    suites = list(root.iter("testsuite"))
    counts = {name: sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors")}
    reasons = sorted({skipped.get("message", "") for skipped in root.iter("skipped")})
    return {**counts, "skipped": sum(1 for _ in root.iter("skipped")), "skip_reasons": reasons}


def _skipped_the_device(reason: str) -> bool:
    return any(phrase in reason for phrase in ("no CUDA", "needs CUDA"))


def run_tests(run: Run, _: Sequence[str] = ()) -> bool:
    """All tests that run on CUDA, then what the package checks and generates by itself; keep the numbers."""
    results, log = run.scratch / "tests.xml", run.logs / "tests.txt"
    results.unlink(missing_ok=True)
    good = True
    with log.open("w") as file:
        spread = ["-n", str(_TEST_PROCESSES)] if importlib.util.find_spec("xdist") else []
        status = execute(pytest_command(FOLDERS, "cuda", f"--junitxml={results}", *spread), file, _TESTS_LIMIT_S)
        entry: dict[str, Any] = {"status": status, "good": False}
        if status is not None and results.exists():
            entry |= counted(results)
            # A run that skipped the device proves nothing.
            idle = any(_skipped_the_device(reason) for reason in entry["skip_reasons"])
            entry["good"] = status == 0 and not idle and entry["tests"] > entry["skipped"]
        print(f"pytest: {entry}\n{tail(log)}", flush=True)
        run.keep("tests", "pytest", entry)
        good &= entry["good"]
        # What an earlier run has made would not be made again.
        images = run.scratch / "images"
        shutil.rmtree(images, ignore_errors=True)
        generated = ["generate", "--device", run.device.type, "--outdir", str(images), "--grid"]
        for name, arguments in (("selfcheck", ["selfcheck"]), ("generate", generated)):
            status = execute([sys.executable, "-m", "edm_fast", *arguments], file, 60)
            print(f"{name}: status {status}", flush=True)
            run.keep("tests", name, {"status": status, "good": status == 0})
            good &= status == 0
    return good


def describe_tests(_: Sequence[str]) -> Iterator[str]:
    command = [*pytest_command(FOLDERS, "cuda"), "--collect-only", "-q"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    for folder in FOLDERS:
        yield f"{_count(listed, folder)} tests of {folder} with cuda in their names"
    yield "edm_fast selfcheck; edm_fast generate --grid"


def _count(listed: Sequence[str], folder: str) -> int:
    """Of tests, in pytest's list of 'FILE: NUMBER' or, with less quiet options, of names."""
    here = [line for line in listed if line.startswith(f"{folder}/")]
    return sum(1 if "::" in line else int(line.rpartition(":")[2]) for line in here)


def sanitize(run: Run, tools: Sequence[str] = ()) -> bool:
    """Every kernel at small sizes and the tests of small shapes under each tool, after a bug that it must report."""
    seen, said = _sees_planted_bug(run)
    run.keep("sanitize", "planted bug", {"seen": seen, "message": said})
    print(f"planted bug: {said}", flush=True)
    if not seen:
        print("nothing to learn from compute-sanitizer on this machine")
        return True
    good = True
    # At once: none of this is timed, and each takes minutes.
    chosen = tools or SANITIZERS
    with ThreadPoolExecutor(len(chosen)) as pool:
        entries = list(pool.map(lambda tool: _under(run, tool), chosen))
    for tool, entry in zip(chosen, entries, strict=True):
        print(f"{tool}: {entry}", flush=True)
        run.keep("sanitize", tool, entry)
        good &= entry["good"]
    return good


def _sees_planted_bug(run: Run) -> tuple[bool, str]:
    """Whether memcheck names the write out of bounds, and what came of it."""
    if shutil.which("compute-sanitizer") is None or shutil.which("nvcc") is None:
        return False, "compute-sanitizer or nvcc is not there"
    program, log = run.scratch / "planted", run.scratch / "planted.txt"
    build = ["nvcc", "-arch=native", "-lineinfo", "-o", str(program), str(ROOT / "benchmarks" / "planted_bug.cu")]
    with log.open("w") as file:
        if execute(build, file, 120) != 0:
            return False, f"nvcc failed:\n{tail(log)}"
        status = execute(_sanitizer("memcheck", str(program)), file, 60)
    if status == 0:
        return False, "not seen"
    if _PLANTED_MESSAGE not in log.read_text(errors="replace"):
        return False, f"the tool failed without naming it:\n{tail(log)}"
    return True, "seen"


def _sanitizer(tool: str, *command: str) -> list[str]:
    return ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(_ERRORS_FOUND), *command]


def _under(run: Run, tool: str) -> dict[str, Any]:
    """What became of the programs under a tool: clean, errors, unfinished, or failed for another reason."""
    log = run.logs / f"{tool}.txt"
    ours = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
    programs = {
        "kernels": _sanitizer(tool, *ours, "kernels", "--device", str(run.device)),
        "tests": _sanitizer(tool, *pytest_command(["tests/ops"], SANITIZED)),
    }
    if tool == "memcheck":
        # The full size of a network, where offsets and grids are those that are timed; our kernels alone, to be quick.
        programs["network"] = _sanitizer(
            tool, "--kernel-regex", "kns=edm_fast", *ours, "forward", "--device", str(run.device)
        )
    entry: dict[str, Any] = {}
    with log.open("w") as file:
        for name, command in programs.items():
            # Without its cache PyTorch leaves the bounds of every tensor to be checked.
            environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            status = execute(command, file, _SANITIZER_LIMIT_S, environment)
            outcomes = {0: "clean", _ERRORS_FOUND: "errors", None: "unfinished"}
            entry[name] = outcomes.get(status, f"failed with status {status}")
    if set(entry.values()) - {"clean"}:
        print(tail(log))
    others = {outcome for name, outcome in entry.items() if name != "kernels"}
    entry["good"] = entry["kernels"] == "clean" and others <= {"clean", "unfinished"}
    return entry


def describe_sanitizers(tools: Sequence[str]) -> Iterator[str]:
    yield "compute-sanitizer on benchmarks/planted_bug.cu, which it must report"
    for tool in tools or SANITIZERS:
        network = ", and a network at full size" if tool == "memcheck" else ""
        yield f"{tool}: every op at small sizes, the tests '{SANITIZED}'{network}, {_SANITIZER_LIMIT_S} s each"
