"""Files of figures: by machine, with the commit that was measured. And pairs of runs, for the GPU's benchmarks."""

from __future__ import annotations

import datetime
import json
import re
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Match:
    """How far an output is from the float64 result, and how far it may be."""

    error: float
    bound: float

    @property
    def good(self) -> bool:
        return self.error <= self.bound


@dataclass(frozen=True)
class Result:
    """Median seconds of the baseline and of ours, and the median of their ratios with its quartiles."""

    name: str
    baseline_s: float
    ours_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    pairs: int


def paired(name: str, baseline: Callable[[], float], ours: Callable[[], float], pairs: int) -> Result:
    """Run both in turn `pairs` times; each call does its work once and returns the seconds it took.

    The order within a pair alternates.
    """
    times: list[tuple[float, float]] = []
    for index in range(pairs):
        if index % 2:
            ours_s = ours()
            times.append((baseline(), ours_s))
        else:
            times.append((baseline(), ours()))
    ratios = sorted(a / b for a, b in times)
    return Result(
        name,
        statistics.median(a for a, _ in times),
        statistics.median(b for _, b in times),
        statistics.median(ratios),
        ratios[len(ratios) // 4],
        ratios[3 * len(ratios) // 4],
        pairs,
    )


def revision() -> dict[str, str]:
    """The commit that is measured, with a plus if the tree differs from it, and the day."""
    describe = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        commit = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        commit = "unknown"
    return {"commit": commit, "date": datetime.date.today().isoformat()}


def merge(path: Path, title: str, where: dict[str, str | int], figures: dict[str, dict[str, Any]]) -> None:
    """Put figures[row][name] into the file, which keeps its other figures.

    ValueError if the file's figures are from another machine or other versions: they do not go together.
    """
    data: dict[str, Any] = {"title": title, "machine": where, "rows": {}}
    if path.exists():
        data = json.loads(path.read_text())
        if data["machine"] != where:
            raise ValueError(f"{path}: holds figures of {data['machine']}, and these are of {where}; use another file")
    for row, entries in figures.items():
        data["rows"].setdefault(row, {}).update(entries)
    write(path, data)


def write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def slug(where: dict[str, str | int]) -> str:
    """A folder's name for a machine: 'AMD EPYC', 2 threads, avx512 → 'amd-epyc-avx512-2-threads'."""
    words = f"{where['processor']} {where['instruction_set']} {where['threads']} threads"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(r\)|\(tm\)", "", words.lower())).strip("-")
