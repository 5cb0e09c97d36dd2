"""Proves the tests: breaks a copy of the sources in many small ways, one at a time, and sees that tests notice each.

    python tests/mutations/run.py                        all of them; writes results.json and RESULTS.md here
    python tests/mutations/run.py --only NAME[,NAME…]    some, or those of an area
    python tests/mutations/run.py --only NAME --page     the same, and puts them on the page among the others
    python tests/mutations/run.py --sample 6 --seed 1    some by chance
    python tests/mutations/run.py --list                 their names

The exit status is 1 if a mutation survived, could not be applied, did not compile, or its tests fail without it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from catalogue import FOLDER, Mutation, in_running_order, load
from scratch import BuildError, Scratch

CAUGHT, SURVIVED, HANG, FAILED = "caught", "survived", "hang", "error"
# A run that is this many times as long as without the bug hangs; short ones get a floor.
_SLOWER, _SHORTEST_LIMIT = 8.0, 90.0
# For the first run of tests, whose time is not known.
_FIRST_LIMIT = 900.0

TestKey = tuple[tuple[str, ...], str]


@dataclass(frozen=True)
class Verdict:
    """What became of a mutation.

    Attributes:
        outcome: CAUGHT, HANG (which counts as caught), SURVIVED, or FAILED, which proves nothing.
        noticed_by: the first failing test, or why there is none.
        seconds: of compiling and testing.
    """

    name: str
    area: str
    file: str
    bug: str
    outcome: str
    noticed_by: str
    seconds: float

    @property
    def good(self) -> bool:
        return self.outcome in (CAUGHT, HANG)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def build(scratch: Scratch, mutation: Mutation) -> None:
    if mutation.rebuild == "python":
        compile((scratch.folder / mutation.file).read_text(encoding="utf-8"), mutation.file, "exec")
    elif mutation.rebuild == "simt":
        scratch.build_simt()
    else:
        scratch.build_extension()


def limits(scratch: Scratch, mutations: Sequence[Mutation]) -> dict[TestKey, float]:
    """Seconds that the tests of each mutation may take, from a run without any; none for tests that fail then."""
    found: dict[TestKey, float] = {}
    for mutation in mutations:
        key = mutation.tests, mutation.select
        if key in found:
            continue
        run = scratch.test(*key, _FIRST_LIMIT)
        say(f"{run.seconds:6.1f} s  {' '.join(mutation.tests)} {mutation.select}")
        if run.passed:
            found[key] = max(_SLOWER * run.seconds, _SHORTEST_LIMIT)
        else:
            say(f"the tests of {mutation.name} do not pass without it:\n{run.output}")
    return found


def verdict(scratch: Scratch, mutation: Mutation, limit: float | None) -> Verdict:
    """Apply, compile, test, restore."""
    began = time.monotonic()

    def ended(outcome: str, noticed_by: str) -> Verdict:
        seconds = round(time.monotonic() - began, 1)
        return Verdict(mutation.name, mutation.area, mutation.file, mutation.bug, outcome, noticed_by, seconds)

    if mutation.occurrences(scratch.folder) != mutation.count:
        found = mutation.occurrences(scratch.folder)
        return ended(FAILED, f"not applicable: its text stands {found} times in the file, not {mutation.count}")
    if limit is None:
        return ended(FAILED, "its tests do not pass without it")
    with scratch.broken_by(mutation):
        try:
            build(scratch, mutation)
        except (BuildError, SyntaxError) as error:
            say(str(error))
            return ended(FAILED, "does not compile")
        run = scratch.test(mutation.tests, mutation.select, limit)
    if run.passed:
        return ended(SURVIVED, "none")
    if not run.noticed:
        say(run.output)
        return ended(FAILED, f"pytest ended with status {run.code}")
    if run.code is None:
        return ended(HANG, f"still running after {limit:.0f} s")
    return ended(CAUGHT, run.first or f"the interpreter died (status {run.code})")


def prove(mutations: Sequence[Mutation], folder: Path, jobs: int) -> list[Verdict]:
    """Verdicts on the mutations in the order of running."""
    scratch = Scratch(folder, jobs)
    rebuilds = {mutation.rebuild for mutation in mutations}
    if "extension" in rebuilds or not scratch.take_extension():
        say("building the extension")
        scratch.build_extension()
    if "simt" in rebuilds:
        say("building the emulated CUDA kernels")
        scratch.build_simt()
    scratch.check_imports()
    say("running the tests without any bug")
    allowed = limits(scratch, mutations)
    verdicts = []
    for mutation in in_running_order(mutations):
        result = verdict(scratch, mutation, allowed.get((mutation.tests, mutation.select)))
        say(f"{result.outcome:9}{result.seconds:6.1f} s  {result.name}: {result.noticed_by}")
        verdicts.append(result)
    return verdicts


def row(result: Verdict) -> str:
    """A line of RESULTS.md."""
    noticed = f"`{result.noticed_by}`" if result.outcome == CAUGHT else f"{result.outcome}: {result.noticed_by}"
    cells = [f"**{result.name}**: {result.bug}", f"`{result.file}`", noticed]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def rows_of(earlier: str, known: set[str]) -> dict[str, str]:
    """The lines of an earlier RESULTS.md, by name, of the mutations that there still are."""
    lines = {line[4 : line.index("**:")]: line for line in earlier.splitlines() if line.startswith("| **")}
    return {name: line for name, line in lines.items() if name in known}


def page(rows: Iterable[str], seconds: float) -> str:
    """RESULTS.md, with the time that the last run of everything took."""
    lines = sorted(rows, key=lambda line: (line.split(" | ")[1], line))
    unnoticed = sum(f" | {outcome}: " in line for line in lines for outcome in (SURVIVED, FAILED))
    summary = f"{len(lines) - unnoticed} of {len(lines)} deliberate bugs were noticed by the tests"
    head = [
        "# Mutation proof",
        "",
        f"{summary}; the last run of all of them took {seconds / 60:.0f} minutes.",
        "Written by `python tests/mutations/run.py`; do not edit.",
        "",
        "| Bug | File | Noticed by |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *lines]) + "\n"


def write_page(verdicts: Sequence[Verdict], seconds: float | None) -> None:
    """RESULTS.md anew, or, of a run of some (without `seconds`), with their lines in it."""
    made = {result.name: row(result) for result in verdicts}
    target = FOLDER / "RESULTS.md"
    if seconds is None:
        earlier = target.read_text(encoding="utf-8")
        taken = re.search(r"took (\d+) minutes", earlier)
        seconds = 60.0 * int(taken.group(1)) if taken else 0.0
        made = {**rows_of(earlier, {mutation.name for mutation in load()}), **made}
    target.write_text(page(made.values(), seconds), encoding="utf-8")


def chosen(mutations: list[Mutation], arguments: argparse.Namespace) -> list[Mutation]:
    """Those that the command line asks for; SystemExit for names that do not exist."""
    if arguments.only:
        names = set(arguments.only.split(","))
        unknown = names - {mutation.name for mutation in mutations} - {mutation.area for mutation in mutations}
        if unknown:
            raise SystemExit(f"--only: there is no mutation or area named {', '.join(sorted(unknown))}")
        mutations = [mutation for mutation in mutations if names & {mutation.name, mutation.area}]
    if arguments.sample:
        mutations = random.Random(arguments.seed).sample(mutations, min(arguments.sample, len(mutations)))
    return mutations


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", metavar="NAMES", help="names of mutations or of areas (samplers, …), separated by commas"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="N of them by chance")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of --sample (default: 0)")
    parser.add_argument("--list", action="store_true", help="print names, files and bugs")
    parser.add_argument("--page", action="store_true", help="with --only or --sample: put what was found on the page")
    parser.add_argument("--result", type=Path, metavar="FILE", help="write the verdicts as JSON")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="keep the copy and what was built here")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time")
    arguments = parser.parse_args()
    mutations = chosen(load(), arguments)
    if arguments.list:
        for mutation in mutations:
            say(f"{mutation.name}  {mutation.file}  {mutation.bug}")
        return 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.scratch or Path(temporary) / "tree").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        verdicts = prove(mutations, folder, arguments.jobs)
    seconds = time.monotonic() - began
    bad = [result for result in verdicts if not result.good]
    say(f"{len(verdicts) - len(bad)} of {len(verdicts)} caught in {seconds:.0f} s")
    for result in bad:
        say(f"{result.outcome}: {result.name}: {result.noticed_by}")
    everything = not arguments.only and not arguments.sample
    target = arguments.result or (FOLDER / "results.json" if everything else None)
    if target is not None:
        found = {
            "python": platform.python_version(),
            "seconds": round(seconds),
            "mutations": [asdict(result) for result in verdicts],
        }
        target.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if everything or arguments.page:
        write_page(verdicts, seconds if everything else None)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
