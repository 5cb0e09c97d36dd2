"""Operations and bytes of a graph, counted from its shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edm_fast.plan.ir import Attention, Conv, Graph, GroupNormSilu, Operation, Resample, Residual, reads, writes

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
    names = {GroupNormSilu: "group_norm_silu", Resample: "resample", Residual: "residual", Attention: "attention"}
    return names[type(operation)]
