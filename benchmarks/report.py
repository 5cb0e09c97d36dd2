"""RESULTS.md and its plots from the JSON files in results/, and from nothing else; what has no file says so.

Run: python benchmarks/report.py            write RESULTS.md and plots/*.svg, which needs matplotlib
     python benchmarks/report.py --check    exit with 1 if RESULTS.md is not what would be written
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import cpu_report
import gpu_report
import quality_report

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PLOTS = HERE / "plots"
PAGE = HERE / "RESULTS.md"

INTRODUCTION = """# Results

Made by `python benchmarks/report.py` from the files in `benchmarks/results`; do not edit. Ratios are medians over
rounds of interleaved runs, the peer's time over ours: above 1, ours is faster. Outputs are compared first, and what
does not match gets no time. What missed its target, why, and what was tried stands in [NOTES.md](NOTES.md)."""


def load(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def render(folder: Path = RESULTS) -> str:
    """The page for the JSON files of a folder."""
    parts = [
        INTRODUCTION,
        *cpu_report.sections(folder),
        *quality_report.sections(folder),
        *gpu_report.section(load(folder, "gpu"), load(folder, "counted_cuda")),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    if parser.parse_args().check:
        current = PAGE.exists() and PAGE.read_text() == render()
        print(f"{PAGE.name} is {'up to date' if current else 'out of date: run python benchmarks/report.py'}")
        return 0 if current else 1
    PAGE.write_text(render())
    cpu_report.plots(RESULTS, PLOTS)
    quality_report.plots(RESULTS, PLOTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
