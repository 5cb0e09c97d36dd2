"""Interleaved timing: in each round everything that is compared has a turn, and ratios are formed within rounds.

A machine that slows down then slows all of them. What takes less than 5 ms runs several times in its turn, since a
single call would mostly measure cold caches and threads that the others left asleep.
"""

from __future__ import annotations

import ctypes
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import edm_fast
from edm_fast.ops.backends import extension

COPY = "copy of as many bytes"

# A copy below this size is mostly the call.
_LEAST_COPY = 1 << 16
_WARM_ROUNDS = 2
_LEAST_TURN = 5e-3  # seconds
_MOST_CALLS = 100
_TRIALS = 5
_OURS = "ours"


class MismatchError(Exception):
    """A variant computes something else, so its time means nothing."""


@dataclass(frozen=True)
class Peer:
    """What a user could run instead.

    `output` is what is compared with the case's `expected`; None for one that draws random numbers of its own, where
    no two outputs agree. A peer that `compiles` does so at its first call, which may take minutes.
    """

    run: Callable[[], object]
    output: Callable[[], Tensor] | None = None
    compiles: bool = False


@dataclass(frozen=True)
class Case:
    """Ours and its peers.

    Attributes:
        ours: one run of ours.
        output: what ours computes; `expected` is the same in float64.
        bound: how far outputs may be from `expected`, of its largest value.
        peers: by name.
        bytes: of tensors that must be read or written once; None if that says nothing.
        parts: a run is so many equal parts, of which one is reported (the steps of a sampler).
        targets: the ratio that is wanted over the fastest of the peers whose name begins with the key.
        most_rounds: bounds the rounds of what takes long.
    """

    ours: Callable[[], object]
    output: Callable[[], Tensor]
    expected: Callable[[], Tensor]
    bound: float
    peers: dict[str, Peer]
    bytes: int | None = None
    parts: int = 1
    targets: dict[str, float] = field(default_factory=dict)
    most_rounds: int = 1000

    def without_compilers(self) -> Case:
        """The case without the peers that compile."""
        return replace(self, peers={name: peer for name, peer in self.peers.items() if not peer.compiles})


def relative_error(output: Tensor, expected: Tensor) -> float:
    """max |output − expected| / max |expected|; infinite for another shape, or if anything is not finite."""
    if output.shape != expected.shape or not output.isfinite().all():
        return float("inf")
    return float((output.double() - expected.double()).abs().max() / expected.double().abs().max())


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def copy_of(size: int) -> Callable[[], object]:
    """A copy that reads and writes `size` bytes together."""
    source = torch.ones(max(1, size // 8))
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _calls_of(function: Callable[[], object]) -> int:
    """How many calls of it make a turn, by the fastest of a few: the first ones are cold."""
    fastest_s = seconds(function)
    if fastest_s < _LEAST_TURN:
        fastest_s = min(fastest_s, *(seconds(function) for _ in range(_TRIALS)))
    return min(_MOST_CALLS, max(1, math.ceil(_LEAST_TURN / max(fastest_s, 1e-9))))


class Turns:
    """The rounds of a case: `check` and `warm`; then, in turn, `run_peers`, `run_ours` and `add_ours`; then `figures`.

    `clock`: gives the seconds of a call; each turn is then a single call. By default it is the wall's, and turns are
    of at least 5 ms or 100 calls.
    """

    def __init__(self, case: Case, clock: Callable[[Callable[[], object]], float] | None = None) -> None:
        self.case = case
        self._clock = clock or seconds
        self._one_call = clock is not None
        self._calls: dict[str, int] = {}
        self._others = {name: peer.run for name, peer in case.peers.items()}
        if case.bytes is not None and case.bytes >= _LEAST_COPY:
            self._others[COPY] = copy_of(case.bytes)
        self._times: dict[str, list[float]] = {name: [] for name in self._others}
        self._ours: list[float] = []
        self._round = 0
        self.errors: dict[str, float | None] = {}

    def check(self) -> None:
        """Compare all outputs; MismatchError names the first that is too far off."""
        expected = self.case.expected()
        outputs: dict[str, Callable[[], Tensor] | None] = {_OURS: self.case.output}
        outputs |= {name: peer.output for name, peer in self.case.peers.items()}
        for name, output in outputs.items():
            self.errors[name] = None if output is None else relative_error(output(), expected)
            error = self.errors[name]
            if error is not None and not error <= self.case.bound:  # NaN is no match
                raise MismatchError(
                    f"{name} is off by {error:.2g} of the largest value; {self.case.bound:g} is allowed"
                )

    def warm(self) -> None:
        """Run everything a few times, untimed; nothing if the case takes so long that its rounds are as few."""
        if self.case.most_rounds <= _WARM_ROUNDS:
            return
        for _ in range(_WARM_ROUNDS):
            for function in self._others.values():
                function()
            self.case.ours()
        if not self._one_call:
            for name, function in {**self._others, _OURS: self.case.ours}.items():
                self._calls[name] = _calls_of(function)

    def run_peers(self) -> None:
        """A turn of all but ours; another one begins each time."""
        names = [*self._others]
        start = self._round % max(1, len(names))
        for name in names[start:] + names[:start]:
            taken = self._clock(partial(self._turn, name, self._others[name]))
            self._times[name].append(taken / self._calls.get(name, 1))
        self._round += 1

    def run_ours(self) -> object:
        """A turn of ours."""
        return self._turn(_OURS, self.case.ours)

    def _turn(self, name: str, function: Callable[[], object]) -> object:
        for _ in range(self._calls.get(name, 1) - 1):
            function()
        return function()

    def add_ours(self, turn_s: float) -> None:
        """The seconds of `run_ours` in the round that `run_peers` began."""
        self._ours.append(turn_s / self._calls.get(_OURS, 1))

    def run(self, rounds: int) -> dict[str, Any]:
        """All of it, timed by the clock."""
        self.check()
        self.warm()
        for _ in range(min(rounds, self.case.most_rounds)):
            self.run_peers()
            self.add_ours(self._clock(self.run_ours))
        return self.figures()

    def figures(self) -> dict[str, Any]:
        """Medians in seconds, ratios with their quartiles (above 1, ours is faster), errors, bytes."""
        case = self.case
        figures: dict[str, Any] = {
            "ours_s": statistics.median(self._ours) / case.parts,
            "rounds": len(self._ours),
            "calls": self._calls.get(_OURS, 1),
            "match": True,
            "error": self.errors.get(_OURS),
            "error_bound": case.bound,
            "peers": {name: self._compared(name) for name in case.peers},
            "targets": case.targets,
        }
        if case.bytes is not None:
            figures["bytes"] = case.bytes
        if COPY in self._times:
            figures["copy"] = self._compared(COPY)
        return figures

    def _compared(self, name: str) -> dict[str, Any]:
        times = self._times[name]
        low, middle, high = quartiles([theirs / ours for theirs, ours in zip(times, self._ours, strict=True)])
        taken = statistics.median(times) / self.case.parts
        return {"s": taken, "ratio": middle, "low": low, "high": high, "error": self.errors.get(name)}


def quartiles(values: list[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 4], statistics.median(ordered), ordered[3 * len(ordered) // 4]


def fastest(figures: dict[str, Any], prefix: str = "") -> str | None:
    """The name of the fastest peer whose name begins with `prefix`."""
    names = [name for name in figures["peers"] if name.startswith(prefix)]
    return min(names, key=lambda name: figures["peers"][name]["s"], default=None)


def machine() -> dict[str, str | int]:
    """What the figures are measured on."""
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


def keep_memory() -> bool:
    """Tell glibc to keep freed memory: to get it back costs page faults, and nobody is to win by avoiding those.

    Whether the C library took it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    values = ((mmap_threshold, 1 << 30), (trim_threshold, (1 << 31) - 1), (top_pad, 1 << 28))
    taken = [mallopt(name, value) == 1 for name, value in values]
    return all(taken)
