"""Operations and bytes of a graph, counted from its shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edm_fast.plan.ir import (
    AddBias,
    Attention,
    Conv,
    Graph,
    GroupNormSilu,
    Operation,
    Resample,
    Residual,
    reads,
    writes,
)
from edm_fast.plan.passes import overwritten

# What a block may have on devices of compute capability 9.0.
SHARED_BYTES = 227 * 1024

# The narrowest slab of channels that a block reads at a time.
_SECTOR_BYTES = 32

# Multiplications and additions per element, about: statistics, normalisation and SiLU.
_NORM_FLOPS = 15


def flops(operation: Operation) -> int:
    """Multiplications and additions per sample, of the direct form of a convolution whatever its algorithm."""
    if isinstance(operation, Conv):
        in_channels = sum(source.channels for source in operation.sources)
        return 2 * operation.out.elements * in_channels * operation.kernel**2
    if isinstance(operation, Attention):
        return 4 * operation.out.pixels * operation.out.elements
    if isinstance(operation, GroupNormSilu):
        return _NORM_FLOPS * sum(source.elements for source in operation.sources)
    if isinstance(operation, Resample):
        return 2 * len(operation.resampling.taps) ** 2 * min(operation.out.elements, operation.source.elements)
    return 2 * operation.out.elements


def activation_bytes(operation: Operation, element_bytes: int) -> int:
    """Bytes read and written per sample, every image once."""
    images = [*reads(operation), *writes(operation)]
    return element_bytes * sum(image.elements for image in images)


def launches(graph: Graph, element_bytes: int = 2, shared_bytes: int = SHARED_BYTES) -> int:
    """Launches of a device's forward (`DevicePlan.graph`), one for each operation but for these.

    A norm whose slabs do not fit into `shared_bytes` of a block takes two. A product that cannot be written over its
    residual takes a copy. What a library launches inside one of its calls, such as the sum of a split product, is not
    known here; neither are the modulation rows of many steps, nor copies at the border of a captured graph.
    """
    in_place = overwritten(graph)
    total = 0
    for operation in graph.operations:
        total += 1
        if isinstance(operation, GroupNormSilu):
            total += not _norm_is_resident(operation, element_bytes, shared_bytes)
        elif isinstance(operation, Conv) and operation.kernel == 1 and operation.residual is not None:
            total += operation not in in_place
    return total


def _norm_is_resident(norm: GroupNormSilu, element_bytes: int, shared_bytes: int) -> bool:
    """`plan_resident` of csrc/cuda/group_norm_silu_resident.cuh for the widest budget and the narrowest slabs."""
    pack, warps = 16 // element_bytes, 8
    channels, pixels = sum(source.channels for source in norm.sources), norm.sources[0].pixels
    group = channels // norm.module.num_groups
    unit = math.lcm(group, pack) if channels % pack == 0 else group
    units = channels // unit
    slabs = max(1, units // -(-_SECTOR_BYTES // (element_bytes * unit)))
    packs = -(-(-(-units // slabs) * unit) // pack)
    width = packs * pack
    return packs <= 32 and 16 * pixels * packs + 4 * (7 * width + warps * (2 * width + 1)) <= shared_bytes


def weight_count(operation: Operation) -> int:
    """Parameters that an operation reads."""
    if isinstance(operation, Conv):
        bias = sum(parameter.numel() for parameter in operation.biases)
        return operation.out.channels * sum(s.channels for s in operation.sources) * operation.kernel**2 + bias
    if isinstance(operation, GroupNormSilu):
        return 2 * sum(source.channels for source in operation.sources)
    return 0


def describe(graph: Graph, element_bytes: int, details: Mapping[Any, str] | None = None) -> str:
    """One line per operation: what it is, its shapes, bytes of activations and operations per sample; then the sums."""
    lines = []
    for index, operation in enumerate(graph.operations):
        inputs = " + ".join(f"{i.channels}x{i.height}x{i.width}" for i in reads(operation))
        outputs = " , ".join(f"{i.channels}x{i.height}x{i.width}" for i in writes(operation))
        detail = (details or {}).get(operation, "")
        lines.append(
            f"{index:3d} {_kind(operation):14s} {writes(operation)[0].name:28s} {inputs} -> {outputs}  "
            f"{activation_bytes(operation, element_bytes) / 1e3:.0f} kB  {flops(operation) / 1e6:.1f} MFLOP"
            f"{'  ' + detail if detail else ''}"
        )
    total_bytes = sum(activation_bytes(operation, element_bytes) for operation in graph.operations)
    total_flops = sum(flops(operation) for operation in graph.operations)
    weights = sum(weight_count(operation) for operation in graph.operations)
    lines.append(
        f"{len(graph.operations)} operations, {total_bytes / 1e6:.1f} MB of activations and "
        f"{total_flops / 1e9:.2f} GFLOP per sample, {weights:,} weights"
    )
    return "\n".join(lines)


def _kind(operation: Operation) -> str:
    if isinstance(operation, Conv):
        return f"conv {operation.kernel}x{operation.kernel}"
    names = {
        GroupNormSilu: "group_norm_silu",
        Resample: "resample",
        Residual: "residual",
        AddBias: "add_bias",
        Attention: "attention",
    }
    return names[type(operation)]
