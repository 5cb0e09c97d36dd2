"""Interleaved A/B timing: the variants take turns and ratios are formed pair by pair.

A machine that slows down then slows all of them.
"""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import edm_fast
from edm_fast.ops.backends import extension

RESULTS = Path(__file__).parent / "results"


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


def compare(name: str, baseline: Callable[[], object], ours: Callable[[], object], pairs: int = 41) -> Result:
    """Run both in turn `pairs` times after a warm-up; the order within a pair alternates."""
    for _ in range(3):
        baseline()
        ours()
    return paired(name, lambda: seconds(baseline), lambda: seconds(ours), pairs)


def paired(name: str, baseline: Callable[[], float], ours: Callable[[], float], pairs: int) -> Result:
    """The same for functions that measure themselves: each call does its work once and returns the seconds."""
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


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "processor": model,
        "threads": torch.get_num_threads(),
        "instruction_set": extension().cpu.isa(),
        "torch": torch.__version__,
        "edm_fast": edm_fast.__version__,
    }


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


def report(title: str, results: list[Result], file: str, extra: dict[str, dict[str, Any]] | None = None) -> None:
    """Print a table and write benchmarks/results/FILE.json; `extra` adds fields to the results of some names."""
    print(f"{title}\n{machine()}\n")
    print(f"{'case':44} {'baseline':>12} {'ours':>12} {'ratio':>7}  quartiles")
    for result in results:
        low, high = result.ratio_low, result.ratio_high
        times = f"{result.baseline_s * 1e6:9.1f} µs {result.ours_s * 1e6:9.1f} µs"
        print(f"{result.name:44} {times} {result.ratio:6.1f}x  {low:.1f}-{high:.1f}")
    rows = [{**asdict(result), **(extra or {}).get(result.name, {})} for result in results]
    write(RESULTS / f"{file}.json", {"title": title, "machine": machine(), "results": rows})
