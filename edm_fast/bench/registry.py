"""All cases by group and name; a case is built when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from edm_fast.bench.turns import Case


@dataclass(frozen=True)
class Entry:
    """How to build a case; `quick` ones together take about a minute."""

    group: str
    name: str
    build: Callable[[], Case]
    quick: bool = False

    def case(self, compilers: bool) -> Case:
        """Built without gradients and from the same random numbers each time; with the peers that compile, or not."""
        torch.manual_seed(0)
        with torch.no_grad():
            built = self.build()
        return built if compilers else built.without_compilers()


def entries() -> Iterator[Entry]:
    """Of the CPU's kernels; names are unique."""
    from edm_fast.bench import checkpoints, layers, noise, samplers, training

    for module in (noise, layers, samplers, training, checkpoints):
        yield from module.entries()
