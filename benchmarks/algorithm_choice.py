"""What it costs that a convolution's algorithm is chosen by its shape and never by the batch.

For each resolution of CIFAR-10 DDPM++ the 3×3 convolutions are switched to each algorithm in turn (the direct one where
images are small), the rest staying as it is, and the whole network is timed against the rule, interleaved. A ratio
above 1 is what that batch size would gain by the switch. Figures are merged into
the machine's suite.json.

Run: python benchmarks/algorithm_choice.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
import variants
from harness import RESULTS, merge, revision, slug
from torch import Tensor

from edm_fast.bench import Case, Peer, Turns, machine
from edm_fast.plan import cpu
from edm_fast.plan.algorithms import choose
from edm_fast.plan.cpu import CpuPlan
from edm_fast.plan.embedding import Modulation
from edm_fast.plan.lowering import lower

TITLE = "CPU"
RULE = "by the rule"
ROUNDS = 5
WINOGRAD = ("winograd2", "winograd2x4", "winograd4")
ALGORITHMS = {32: WINOGRAD, 16: WINOGRAD, 8: ("direct", *WINOGRAD)}


def plan_with(graph: Any, resolution: int | None, algorithm: str) -> CpuPlan:
    """The plan by the rule, but for the layers of one resolution."""

    def chosen(conv: Any, wanted: str, pairs: bool) -> Any:
        return choose(conv, algorithm if conv.out.height == resolution else wanted, pairs)

    with mock.patch.object(cpu, "choose", chosen):
        return CpuPlan(graph, torch.float32, "auto")


def main() -> None:
    network = variants.build_network("ddpmpp").model
    graph = lower(network, 32, 32)
    modulation = Modulation(network, graph.affines)(torch.ones(1), torch.zeros(1, 10))
    rule = plan_with(graph, None, "auto")
    where = machine()
    output = RESULTS / slug(where) / "suite.json"
    for resolution, algorithms in ALGORITHMS.items():
        by_rule = {a for conv, a in rule.algorithms.items() if conv.out.height == resolution and conv.kernel == 3}
        for algorithm in [a for a in algorithms if {a} != by_rule - {"direct"}]:
            other = plan_with(graph, resolution, algorithm)
            for batch in (1, 8):
                x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
                case = switched(partial(rule.run, x, modulation), partial(other.run, x, modulation))
                name = f"{batch} images, {resolution}x{resolution} layers by {algorithm}"
                figures = {**Turns(case).run(ROUNDS), **revision()}
                print(f"{name}: {figures['peers'][RULE]['ratio']:.2f}", flush=True)
                merge(output, TITLE, where, {"algorithm choice": {name: figures}})


def switched(by_rule: Callable[[], Tensor], other: Callable[[], Tensor]) -> Case:
    """The switched plan in our place; the algorithms round differently."""
    return Case(other, other, by_rule, 1e-3, {RULE: Peer(by_rule, by_rule)})


if __name__ == "__main__":
    main()
