"""The least time of a network's forward on a device: each operation by the rate that bounds it, one after the other."""

from __future__ import annotations

import count_cuda
from gpu_ceilings import Ceilings

from edm_fast.plan.costs import activation_bytes, flops
from edm_fast.plan.ir import Graph
from edm_fast.plan.lowering import lower
from edm_fast.plan.passes import for_library_convolutions


def device_graph(name: str) -> Graph:
    """The graph that a device runs, from shapes alone: nothing has weights."""
    net = count_cuda.on_meta(name)
    model = count_cuda._with_filters(net, name)
    return for_library_convolutions(lower(model, net.img_resolution, net.img_resolution, plain_skips=True)).graph


def totals(graph: Graph, batch: int, element_bytes: int) -> tuple[int, int]:
    """Operations, and bytes of activations read and written, of a forward."""
    moved = sum(activation_bytes(operation, element_bytes) for operation in graph.operations)
    return batch * sum(flops(operation) for operation in graph.operations), batch * moved


def floor_seconds(graph: Graph, batch: int, element_bytes: int, rates: Ceilings) -> float:
    """Σ over the operations of max(operations / their rate, bytes / theirs)."""
    return sum(
        max(
            batch * flops(operation) / rates.flops_per_s,
            batch * activation_bytes(operation, element_bytes) / rates.bytes_per_s,
        )
        for operation in graph.operations
    )
