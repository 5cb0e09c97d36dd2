"""A graph for a device whose convolutions are a library's, which adds neither biases nor residuals.

What is left to a 3×3 convolution is the convolution. Its residual is added by an operation of its own or by the norm
behind it; a 1×1 convolution is a matrix product, out = (weight · x + residual) · scale, and may follow a 3×3 one to
write its sum over it. Biases cost a pass over the image there, so most are not added at all: an image may be stored
without a constant for each channel, and what reads it accounts for that.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from edm_fast.plan.ir import (
    AddBias,
    Attention,
    Conv,
    Graph,
    GroupNormSilu,
    Image,
    Operation,
    Resample,
    Resampling,
    Residual,
    reads,
    writes,
)
from edm_fast.plan.weights import conv_bias, conv_weight


@dataclass(eq=False)
class DeviceGraph:
    """A rewritten graph and its constants, float32 on the device of the parameters.

    `biases`: of 1×1 convolutions without residual, Residual and AddBias, [channels]; of norms, what is added to x
    before the norm. `column_biases` [columns] belongs to the modulation rows.
    """

    graph: Graph
    column_biases: torch.Tensor
    biases: dict[Operation, torch.Tensor] = field(default_factory=dict)


@torch.no_grad()
def for_library_convolutions(graph: Graph) -> DeviceGraph:
    """The graph of `lower(…, plain_skips=True)` without residuals and biases in 3×3 convolutions.

    ValueError for a graph that was lowered otherwise.
    """
    operations = _separate_residuals(graph.operations)
    complete = _complete_images(operations, graph.output)
    operations = _sum_in_norms(operations, complete)
    device = graph.affines[0].weight.device
    result = DeviceGraph(replace(graph, operations=[]), torch.zeros(graph.columns, dtype=torch.float32, device=device))
    biases = _Biases(result, complete)
    for operation in operations:
        biases.add(operation)
    return result


def overwritten(graph: Graph) -> set[Conv]:
    """The 1×1 convolutions whose residual nothing reads later, so that they can write over it."""
    last = {image: operation for operation in graph.operations for image in reads(operation)}
    products = [
        (operation, operation.residual)
        for operation in graph.operations
        if isinstance(operation, Conv) and operation.residual is not None
    ]
    return {
        conv
        for conv, residual in products
        if residual is not graph.input and residual not in conv.sources and last[residual] is conv
    }


def keeps_constants(resampling: Resampling) -> bool:
    """Whether an image of one value comes out as that value everywhere: no output pixel sees a border."""
    if resampling.direction == 0:
        return True
    return resampling.padding == 0 and (resampling.direction < 0 or len(resampling.taps) == 2)


def _separate_residuals(operations: list[Operation]) -> list[Operation]:
    """3×3 convolutions have no residual any more; 1×1 skips come behind them and add to what they wrote."""
    readers: dict[Image, int] = {}
    producers: dict[Image, Operation] = {}
    for operation in operations:
        for image in reads(operation):
            readers[image] = readers.get(image, 0) + 1
        producers.update(dict.fromkeys(writes(operation), operation))
    separated: list[Operation] = []
    for operation in operations:
        if not isinstance(operation, Conv):
            separated.append(operation)
            continue
        if len(operation.sources) > 1 or operation.residual_up:
            raise ValueError("graph: a convolution of two sources or with residual_up; lower with plain_skips=True")
        if operation.kernel == 1 or operation.residual is None:
            separated.append(operation)
            continue
        convolved = replace(operation.out, name=f"{operation.out.name}.conv")
        separated.append(replace(operation, out=convolved, residual=None, scale=1.0))
        skip = producers.get(operation.residual)
        if isinstance(skip, Conv) and skip.kernel == 1 and skip.residual is None and readers[skip.out] == 1:
            separated.remove(skip)
            separated.append(replace(skip, out=operation.out, residual=convolved, scale=operation.scale))
        else:
            separated.append(Residual(convolved, operation.residual, operation.out, operation.scale))
    return separated


def _complete_images(operations: list[Operation], output: Image) -> set[Image]:
    """The images that cannot be stored without a constant, because a reader would see it end at a border."""
    complete = {output}
    for operation in reversed(operations):
        if isinstance(operation, Attention) or (isinstance(operation, Conv) and operation.kernel > 1):
            complete.update(reads(operation))
        elif isinstance(operation, Resample):
            if operation.out in complete or not keeps_constants(operation.resampling):
                complete.add(operation.source)
        elif isinstance(operation, GroupNormSilu):
            shown = operation.plain is not None and not keeps_constants(operation.resampling)
            if shown or operation.plain in complete:
                complete.update(operation.sources)
    return complete


def _sum_in_norms(operations: list[Operation], complete: set[Image]) -> list[Operation]:
    """A Residual just before the norm of its sum joins it, unless it is needed for its bias."""
    fused: list[Operation] = []
    for operation in operations:
        previous = fused[-1] if fused else None
        if (
            isinstance(operation, GroupNormSilu)
            and isinstance(previous, Residual)
            and operation.sources == (previous.out,)
            and previous.out not in complete
        ):
            fused[-1] = replace(
                operation, sources=(previous.a,), addend=previous.b, sum=previous.out, sum_scale=previous.scale
            )
        else:
            fused.append(operation)
    return fused


class _Biases:
    """Appends operations to a graph and keeps track of the constants that images are stored without."""

    def __init__(self, result: DeviceGraph, complete: set[Image]) -> None:
        self._result = result
        self._complete = complete
        self._missing: dict[Image, torch.Tensor] = {}

    def add(self, operation: Operation) -> None:
        if isinstance(operation, Conv):
            self._add_conv(operation)
        elif isinstance(operation, GroupNormSilu):
            self._add_norm(operation)
        elif isinstance(operation, Residual):
            self._append(operation, _total(self._missing.get(operation.a), self._missing.get(operation.b)))
        else:
            self._append(operation)
            if isinstance(operation, Resample) and operation.source in self._missing:
                self._missing[operation.out] = self._missing[operation.source]

    def _append(self, operation: Operation, bias: torch.Tensor | None = None) -> None:
        self._result.graph.operations.append(operation)
        if bias is not None:
            self._result.biases[operation] = bias

    def _add_conv(self, conv: Conv) -> None:
        bias = conv_bias(conv)
        constant = self._missing.get(conv.sources[0])
        if constant is not None:
            bias = _total(bias, conv_weight(conv)[:, :, 0, 0].float() @ constant)
        bare = replace(conv, biases=())
        if conv.kernel == 1 and conv.residual is None:
            self._append(bare, None if bias is None else bias * conv.scale)
            return
        if conv.residual is not None:
            bias = _total(bias, self._missing.get(conv.residual))
        if bias is None:
            self._append(bare)
            return
        bias = bias * conv.scale
        if conv.out in self._complete:
            bare.out = replace(conv.out, name=f"{conv.out.name}.biasless")
            self._append(bare)
            self._append(AddBias(bare.out, conv.out), bias)
        else:
            self._append(bare)
            self._missing[conv.out] = bias

    def _add_norm(self, norm: GroupNormSilu) -> None:
        if norm.addend is not None and norm.sum is not None:
            total = _total(self._missing.get(norm.sources[0]), self._missing.get(norm.addend))
            constant = None if total is None else total * norm.sum_scale
            if constant is not None:
                self._missing[norm.sum] = constant
        else:
            constant = self._concatenated(norm.sources)
        if norm.plain is not None and constant is not None:
            self._missing[norm.plain] = constant
        if norm.pre_bias is not None and constant is not None:
            start, width = norm.pre_bias.start, norm.pre_bias.width
            self._result.column_biases[start : start + width] += constant
            constant = None
        self._append(norm, constant)

    def _concatenated(self, sources: tuple[Image, ...]) -> torch.Tensor | None:
        if not any(source in self._missing for source in sources):
            return None
        device = self._result.column_biases.device
        parts = [
            self._missing.get(source, torch.zeros(source.channels, dtype=torch.float32, device=device))
            for source in sources
        ]
        return torch.cat(parts)


def _total(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second
