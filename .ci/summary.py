"""The counts of a run of .ci/run, from what its tools wrote; fails if one is missing, or is not what a good run has.

Usage: summary.py FOLDER SECONDS, where FOLDER has

    tests.xml, sanitized.xml   JUnit reports of all tests, and of the kernel tests under ASan and UBSan
    sanitizers/                what ASan reported: a file for each process that had something to report
    sanitized.txt              the output of the kernel tests, in which UBSan reports
    mutations.json             verdicts of tests/mutations/run.py
    fuzz-*.txt                 outputs of tests/checkpoints/fuzz_reader.py
"""

from __future__ import annotations

import ast
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

_FUZZED = re.compile(r"^(\d+) inputs in [\d.]+ s: (\{.*\})$", re.MULTILINE)


class MissingCountError(Exception):
    """A tool did not say what it did, or says that it did nothing."""


def text_of(path: Path) -> str:
    if not path.is_file():
        raise MissingCountError(f"{path.name} was not written")
    return path.read_text(encoding="utf-8")


def counted(path: Path, name_has: str = "") -> Counter[str]:
    """How many tests of a JUnit report passed, failed and were skipped; of those alone whose name has a text."""
    try:
        cases = ElementTree.fromstring(text_of(path)).iter("testcase")
    except ElementTree.ParseError as error:
        raise MissingCountError(f"{path.name} is not a whole report: {error}") from None
    found = Counter(passed=0, failed=0, skipped=0)
    for case in cases:
        kinds = {child.tag for child in case}
        if name_has not in case.get("name", ""):
            continue
        found["failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"] += 1
    if not found["passed"]:
        raise MissingCountError(f"{path.name} has no test {f'named {name_has} ' if name_has else ''}that passed")
    return found


def mutations(path: Path) -> tuple[int, int]:
    """How many deliberate bugs were caught, and how many there were."""
    outcomes = [verdict["outcome"] for verdict in json.loads(text_of(path))["mutations"]]
    if not outcomes:
        raise MissingCountError(f"{path.name} has no verdict")
    return sum(outcome in ("caught", "hang") for outcome in outcomes), len(outcomes)


def fuzzed(folder: Path) -> Counter[str]:
    """How many mutated files were read and refused, and of how many nothing is known: those crashed."""
    found: Counter[str] = Counter()
    paths = sorted(folder.glob("fuzz-*.txt"))
    for path in paths:
        lines = _FUZZED.findall(text_of(path))
        if len(lines) != 1:
            raise MissingCountError(f"{path.name} has {len(lines)} lines of counts, not 1")
        inputs, outcomes = int(lines[0][0]), ast.literal_eval(lines[0][1])
        read, refused = outcomes.get("read", 0), outcomes.get("refused", 0)
        found.update(inputs=inputs, read=read, refused=refused, crashed=inputs - read - refused)
    if not found["read"] or not found["refused"]:
        raise MissingCountError(f"{len(paths)} fuzz-*.txt: of a mutator that works some files are read, others refused")
    return found


def findings(folder: Path) -> int:
    """How many reports the sanitizers made."""
    if not (folder / "sanitizers").is_dir():
        raise MissingCountError("sanitizers/ was not made, so ASan had nowhere to report to")
    by_address = sum(1 for path in (folder / "sanitizers").iterdir() if path.stat().st_size)
    return by_address + text_of(folder / "sanitized.txt").count(": runtime error: ")


def as_line(counts: Counter[str]) -> str:
    return f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"


def main() -> None:
    folder, seconds = Path(sys.argv[1]), int(sys.argv[2])
    try:
        everything, kernels = counted(folder / "tests.xml"), counted(folder / "sanitized.xml")
        emulated = counted(folder / "sanitized.xml", "simt")
        reports = findings(folder)
        caught, applied = mutations(folder / "mutations.json")
        files = fuzzed(folder)
    except MissingCountError as error:
        sys.exit(f"no summary: {error}")
    print(f"tests: {as_line(everything)}")
    print(f"kernel tests under ASan and UBSan: {as_line(kernels)}; findings: {reports}")
    print(f"of these on emulated CUDA kernels: {as_line(emulated)}")
    print(f"deliberate bugs: {caught} of {applied} caught")
    print(f"mutated checkpoint files: {files['read']} read, {files['refused']} refused, {files['crashed']} crashed")
    print(f"seconds: {seconds}")
    bad = everything["failed"] or kernels["failed"] or reports or caught != applied or files["crashed"]
    sys.exit("the run was not good" if bad else 0)


if __name__ == "__main__":
    main()
