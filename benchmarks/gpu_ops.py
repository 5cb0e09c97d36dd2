"""Single ops on a device, replayed from CUDA graphs, against a copy of as many bytes in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from gpu_bits import differing, over_parts
from gpu_cases import Case, Inputs, Source, cases
from gpu_ceilings import COPIED_BYTES, Copy
from gpu_run import Run, replayed, self_timing
from harness import Match, paired

from edm_fast.bench.turns import MismatchError, relative_error

CALLS = 10
ERROR_BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 0.03}
_PARTS = 4


def checked(case: Case, inputs: Inputs) -> Match:
    """Some samples against the reference on the CPU, all of them against parts of the batch. Else MismatchError."""
    whole = case.call(inputs.copy(), None)
    size = -(-case.samples // _PARTS)
    sizes = [min(size, case.samples - first) for first in range(0, case.samples, size)]
    wrong = differing(over_parts(case, inputs, sizes), whole)
    if wrong:
        raise MismatchError(f"{wrong} elements differ if the batch is split in {len(sizes)}")
    error = max(_error(case, inputs, whole, sample) for sample in sorted({0, case.samples // 2, case.samples - 1}))
    match = Match(error, 0.0 if case.exact else ERROR_BOUNDS[case.dtype])
    if not match.good:
        raise MismatchError(f"off by {match.error:.2g} of the largest value; {match.bound:g} is allowed")
    return match


def _error(case: Case, inputs: Inputs, whole: tuple[torch.Tensor, ...], sample: int) -> float:
    """The largest relative error of a sample's outputs; for exact cases the number of elements that differ."""
    chosen = slice(sample, sample + 1)
    given = inputs.part(chosen).each(lambda tensor: tensor.cpu().clone())
    actual = [output[chosen].cpu() for output in whole]
    if case.exact:
        return float(differing(actual, case.call(given, "reference")))
    expected = case.call(given.upcast(), "reference")
    return max(relative_error(a.double(), e) for a, e in zip(actual, expected, strict=True))


def measure_case(case: Case, run: Run, copy_byte_s: Callable[[], float]) -> dict[str, Any]:
    """Check and time one case. `baseline_s` is what a copy of as many bytes takes, `ratio` the share of its rate."""
    inputs = case.make(case.samples, Source(run.device, run.generator(run.device)))
    match = checked(case, inputs)
    ours = self_timing(replayed(lambda: case.call(inputs, None), CALLS, run.device), run.clock)
    result = paired(case.name, lambda: copy_byte_s() * case.bytes, lambda: ours() / CALLS, run.pairs)
    return {
        **asdict(result),
        "op": case.op,
        "bytes": case.bytes,
        "target": case.target,
        "error": match.error,
        "error_bound": match.bound,
        "match": True,
    }


def measure(run: Run, wanted: Sequence[str] = (), few: int | None = None, copied_bytes: int = COPIED_BYTES) -> bool:
    """All cases, or those of the ops that are named: check, time, print and keep. Whether all of them match."""
    copy = Copy(run.device, run.generator(run.device), copied_bytes)
    copy.check()
    copied = self_timing(replayed(copy, CALLS, run.device), run.clock)
    good = True
    for case in _chosen(wanted, few):
        try:
            entry = measure_case(case, run, lambda: copied() / CALLS / copy.moved)
            share, low, high = entry["ratio"], entry["ratio_low"], entry["ratio_high"]
            print(f"{case.name}: {entry['ours_s'] * 1e6:.1f} µs, {share:.2f} of a copy ({low:.2f} … {high:.2f})")
        except MismatchError as error:
            print(f"{case.name}: no match, no time: {error}")
            entry = {"match": False, "reason": str(error), "op": case.op}
            good = False
        run.keep("ops", case.name, entry)
    return good


def _chosen(wanted: Sequence[str], few: int | None = None) -> list[Case]:
    return [case for case in cases(few) if not wanted or case.op in wanted]


def names() -> list[str]:
    """The ops that have cases."""
    return sorted({case.op for case in cases()})


def describe(wanted: Sequence[str]) -> Iterator[str]:
    for case in _chosen(wanted):
        target = "" if case.target is None else f", wanted: {case.target:g} of a copy"
        yield f"{case.name}: {case.bytes / 1e6:.0f} MB, {CALLS} calls in a graph{target}"
