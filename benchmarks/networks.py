"""Networks on the CPU: one forward of the inner network F, ours against eager and compiled PyTorch.

Each variant runs in a process of its own and they take turns. A baseline runs in both memory layouts; the faster one
is what ours is compared with, pair by pair. Outputs are compared with a float64 result first: a variant that does not
match gets no time, and neither does a run beside which the machine did other work. Rows and comparisons stand in
rows.py; figures are merged into results/networks_cpu.json.

Run: python benchmarks/networks.py --row ddpmpp:1 [--only eager,memory] [--pairs 7]
     python benchmarks/networks.py --all
     python benchmarks/networks.py --row ddpmpp:1 --self-test    the baseline in our place too: ratios near 1, not kept
     python benchmarks/networks.py --row digits:1 --baselines    the baselines alone, not kept
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, Result, machine, merge, paired, revision
from rows import COMPARISONS, ERROR_BOUNDS, ROWS, Comparison, comparisons_of, parse_row
from turns import Others, Worker
from variants import NotAvailableError, Spec

TITLE = "Networks on the CPU"
FILE = "networks_cpu"
_SCOUT_TURNS = 3


# Others may use so much of the cores while pairs are timed; threads that wait for one another suffer out of proportion.
_MAX_OTHERS = 0.1


class BusyError(Exception):
    """Something else ran on the machine, so the times are not those of the variants."""


class MismatchError(Exception):
    """A variant computes something else, so its time means nothing."""


@dataclass(frozen=True)
class Match:
    """How far an output is from the float64 result, and how far it may be."""

    error: float
    bound: float

    @property
    def good(self) -> bool:
        return self.error <= self.bound


def relative_error(output: torch.Tensor, expected: torch.Tensor) -> float:
    """max |output − expected| / max |expected|; infinite for another shape, or if anything is not finite."""
    if output.shape != expected.shape or not output.isfinite().all():
        return float("inf")
    return float((output - expected).abs().max() / expected.abs().max())


def checked(worker: Worker, expected: torch.Tensor, folder: Path) -> Match:
    """Compare the worker's output; MismatchError if it is too far off."""
    bound = ERROR_BOUNDS[worker.spec.dtype]
    match = Match(relative_error(worker.output(folder / "output.pt"), expected), bound)
    if not match.good:
        raise MismatchError(f"{worker.spec} is off by {match.error:.2g} of the largest value; {bound:g} is allowed")
    return match


def specs_of(network: str, batch: int, comparison: Comparison) -> tuple[Spec, list[Spec]]:
    """Ours, and the baseline in both memory layouts."""
    common = {"dtype": comparison.dtype, "isa": comparison.isa}
    layouts = ("channels_last", "contiguous")
    baselines = [Spec(network, batch, comparison.baseline, memory_format=layout, **common) for layout in layouts]
    return Spec(network, batch, "ours", **common), baselines


class Row:
    """The comparisons of one network and batch size, against one float64 result."""

    def __init__(self, row: str, pairs: int, self_test: bool, folder: Path) -> None:
        self.row, self.pairs, self.self_test, self.folder = row, pairs, self_test, folder
        self.network, self.batch = parse_row(row)
        with Worker(Spec(self.network, self.batch, "reference", dtype="float64")) as reference:
            self.expected = reference.output(folder / "expected.pt")

    def baseline(self, specs: list[Spec]) -> tuple[Worker, Match, dict[str, float]]:
        """The faster of the layouts, running, with the median seconds of each layout over a few turns in turn."""
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(Worker(spec)) for spec in specs]
            matches = [checked(worker, self.expected, self.folder) for worker in workers]
            turns = [[worker.turn() for worker in workers] for _ in range(_SCOUT_TURNS)]
            seconds = [statistics.median(column) for column in zip(*turns, strict=True)]
            best = min(range(len(workers)), key=lambda index: seconds[index])
            for index, worker in enumerate(workers):
                if index != best:
                    worker.close()
            stack.pop_all()
        layouts = {spec.memory_format: taken for spec, taken in zip(specs, seconds, strict=True)}
        starts = ", ".join(f"{worker.start_s:.0f} s" for worker in workers)
        print(f"  baseline: {describe(layouts)}; start and first forward {starts}; error {matches[best].error:.1e}")
        return workers[best], matches[best], layouts

    def compare(self, comparison: Comparison) -> dict[str, Any]:
        """Time one comparison. MismatchError, NotAvailableError or BusyError instead of a time."""
        spec, baselines = specs_of(self.network, self.batch, comparison)
        if self.self_test:
            spec = replace(baselines[0])
        # Ours starts first, so that a build that has nothing to time says so at once.
        with Worker(spec) as ours:
            match = checked(ours, self.expected, self.folder)
            worker, baseline_match, layouts = self.baseline(baselines)
            with worker as baseline:
                others = Others(ours, baseline)
                result = paired(self.row, baseline.turn, ours.turn, self.pairs)
                share, layout = others.share(), baseline.spec.memory_format
        print(f"  {show(result)}; error {match.error:.1e}; others used {share:.0%} of the cores")
        if share > _MAX_OTHERS:
            raise BusyError(f"other processes used {share:.0%} of the cores; at most {_MAX_OTHERS:.0%} is accepted")
        return {
            **asdict(result),
            "baseline_layout": layout,
            "layouts_s": layouts,
            "error": match.error,
            "baseline_error": baseline_match.error,
            "error_bound": match.bound,
            "match": True,
            "others_share": share,
        }

    def memory(self) -> dict[str, Any]:
        """Bytes of activations and weights in float32: eager, and ours in both storage types."""
        with Worker(Spec(self.network, self.batch, "eager")) as eager:
            figures: dict[str, Any] = {"eager_float32": eager.memory()}
        for dtype in ("float32", "bfloat16"):
            with Worker(Spec(self.network, self.batch, "ours", dtype=dtype)) as ours:
                figures[f"ours_{dtype}"] = ours.memory()
        return figures

    def show_baselines(self, comparison: Comparison) -> None:
        worker, _, _ = self.baseline(specs_of(self.network, self.batch, comparison)[1])
        worker.close()


def describe(layouts: dict[str, float]) -> str:
    return ", ".join(f"{layout} {seconds * 1e3:.3g} ms" for layout, seconds in layouts.items())


def show(result: Result) -> str:
    times = f"{result.baseline_s * 1e3:.4g} ms, ours {result.ours_s * 1e3:.4g} ms"
    return f"{times}: {result.ratio:.2f} ({result.ratio_low:.2f} … {result.ratio_high:.2f}), {result.pairs} pairs"


def measure(row: Row, name: str, options: argparse.Namespace) -> bool:
    """One comparison, or the memory, of a row, kept unless it is a test. Whether it came to a figure."""
    print(f"{row.row}: {name if name == 'memory' else COMPARISONS[name].label}", flush=True)
    try:
        if options.baselines:
            if name != "memory":
                row.show_baselines(COMPARISONS[name])
            return True
        entry = row.memory() if name == "memory" else row.compare(COMPARISONS[name])
    except (NotAvailableError, BusyError) as error:
        print(f"  not measured: {error}")
        return False
    except MismatchError as error:
        print(f"  no match, no time: {error}")
        entry = {"match": False, "reason": str(error)}
    if not options.self_test:
        entry = {**entry, **revision()}
        merge(options.output, TITLE, machine(), {row.row: {name: entry}})
    return entry.get("match", True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = parser.add_mutually_exclusive_group(required=True)
    rows.add_argument("--row", action="append", metavar="NETWORK:BATCH", help="a row; may be given several times")
    rows.add_argument("--all", action="store_true", help=f"all rows: {', '.join(ROWS)}")
    parser.add_argument("--only", metavar="NAMES", help=f"of the row: {', '.join([*COMPARISONS, 'memory'])}")
    parser.add_argument("--pairs", type=int, default=9, help="pairs per comparison (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="3 pairs")
    parser.add_argument("--self-test", action="store_true", help="the baseline in our place; nothing is kept")
    parser.add_argument("--baselines", action="store_true", help="time the baselines alone; nothing is kept")
    parser.add_argument("--output", type=Path, default=RESULTS / f"{FILE}.json", help="JSON file to merge into")
    options = parser.parse_args()
    options.pairs = 3 if options.quick else options.pairs
    if options.pairs < 1:
        parser.error(f"--pairs: got {options.pairs}; at least 1 is needed")
    for row in options.row or []:
        try:
            parse_row(row)
        except ValueError as error:
            parser.error(str(error))
    names = options.only.split(",") if options.only else []
    for name in names:
        if name not in COMPARISONS and name != "memory":
            parser.error(f"--only: got {name!r}; it is one of {', '.join([*COMPARISONS, 'memory'])}")
    if options.self_test and "memory" in names:
        parser.error("--self-test: memory has no ratio to test")
    return options


def main() -> int:
    options = arguments()
    good = True
    for row_name in options.row or ROWS:
        names = options.only.split(",") if options.only else [*comparisons_of(row_name), "memory"]
        with tempfile.TemporaryDirectory() as folder:
            row = Row(row_name, options.pairs, options.self_test, Path(folder))
            for name in names:
                if name == "memory" and options.self_test:
                    continue
                good &= measure(row, name, options)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
