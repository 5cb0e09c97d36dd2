"""The counts that CI ends with are those of the tools' own reports; one that is missing is an error."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Shaped like pytest's reports, with each end that a test can have.
TESTS = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest">
<testcase name="test_a[cpu]" time="0.1" />
<testcase name="test_a[simt]" time="0.1"><properties /></testcase>
<testcase name="test_b[cuda]"><skipped message="no device" /></testcase>
{more}</testsuite></testsuites>
"""
FUZZED = "1000 inputs in 2.5 s: {{'well-formed: read': 13, 'refused': {refused}, 'read': 90}}\n"


def verdicts(*outcomes: str) -> str:
    return json.dumps({"seconds": 1, "mutations": [{"name": "bug", "outcome": outcome} for outcome in outcomes]})


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """Those of a good run."""
    (tmp_path / "tests.xml").write_text(TESTS.format(more='<testcase name="test_c" />'))
    (tmp_path / "sanitized.xml").write_text(TESTS.format(more=""))
    (tmp_path / "sanitizers").mkdir()
    (tmp_path / "sanitized.txt").write_text("2 passed, 1 skipped in 3.4s\n")
    (tmp_path / "mutations.json").write_text(verdicts("caught", "hang", "caught"))
    for seed in (1, 2):
        (tmp_path / f"fuzz-{seed}.txt").write_text(FUZZED.format(refused=910))
    return tmp_path


def summary(reports: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / "summary.py"), str(reports), "1234"]
    return subprocess.run(command, capture_output=True, text=True)


def test_it_prints_what_the_reports_hold(reports):
    done = summary(reports)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "tests: 3 passed, 0 failed, 1 skipped",
        "kernel tests under ASan and UBSan: 2 passed, 0 failed, 1 skipped; findings: 0",
        "of these on emulated CUDA kernels: 1 passed, 0 failed, 0 skipped",
        "deliberate bugs: 3 of 3 caught",
        "mutated checkpoint files: 180 read, 1820 refused, 0 crashed",
        "seconds: 1234",
    ]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("tests.xml", TESTS.format(more='<testcase name="c"><failure /></testcase>'), "tests: 2 passed, 1 failed"),
        ("tests.xml", TESTS.format(more='<testcase name="c"><error /></testcase>'), "tests: 2 passed, 1 failed"),
        ("sanitizers/asan.77", "ERROR: AddressSanitizer: heap-buffer-overflow", "findings: 1"),
        ("sanitized.txt", "a.h:3:5: runtime error: signed integer overflow: 1 + 2", "findings: 1"),
        ("mutations.json", verdicts("caught", "survived"), "1 of 2 caught"),
        ("mutations.json", verdicts("caught", "error"), "1 of 2 caught"),
        ("fuzz-2.txt", FUZZED.format(refused=909), "1 crashed"),
    ],
)
def test_a_bad_count_is_shown_and_fails(reports, name, content, line):
    (reports / name).write_text(content)
    done = summary(reports)
    assert line in done.stdout
    assert done.returncode == 1
    assert "not good" in done.stderr


@pytest.mark.parametrize("name", ["tests.xml", "sanitized.xml", "sanitized.txt", "mutations.json", "fuzz-*.txt"])
def test_a_missing_report_fails(reports, name):
    for path in list(reports.glob(name)):
        path.unlink()
    done = summary(reports)
    assert done.returncode == 1
    assert name in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tests.xml", "<testsuites></testsuites>"),
        ("tests.xml", "<testsuites>"),
        ("sanitized.xml", TESTS.replace("simt", "cpu").format(more="")),
        ("mutations.json", verdicts()),
        ("fuzz-1.txt", "Traceback"),
    ],
)
def test_a_report_without_its_counts_fails(reports, name, content):
    (reports / name).write_text(content)
    done = summary(reports)
    assert done.returncode == 1
    assert name in done.stderr


def test_sanitizers_without_a_place_to_report_to_fail(reports):
    (reports / "sanitizers").rmdir()
    assert "sanitizers" in summary(reports).stderr


def test_ci_writes_every_report_and_ends_with_the_summary():
    script = (ROOT / ".ci" / "run").read_text()
    last = re.split(r"^section ", script, flags=re.MULTILINE)[-1]
    assert last.startswith('"summary"')
    assert ".ci/summary.py" in last
    for name in ("tests.xml", "sanitized.xml", "sanitized.txt", "sanitizers", "mutations.json", "fuzz-1.txt"):
        assert f"$counts/{name}" in script, name
