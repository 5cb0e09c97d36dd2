"""The device's executor for few images in 16 bits: every convolution is our own, with what follows it."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from edm_fast.ops.conv2d_split import PACK, conv2d_split, tiles
from edm_fast.plan.device import DevicePlan, Step, Values
from edm_fast.plan.ir import Conv, Graph, GroupNormSilu, Image
from edm_fast.plan.passes import DeviceGraph
from edm_fast.plan.weights import conv_bias, conv_weight

DTYPES = (torch.float16, torch.bfloat16)


class SplitPlan(DevicePlan):
    """Runs a graph as `DevicePlan` does, with its arguments, by `conv2d_split` in place of a library's convolutions.

    Biases and residuals are added where a convolution ends. There it also takes the moments that the norm behind it
    needs, which so reads its image once. ValueError for another dtype than float16 and bfloat16, or for a graph that
    was not lowered with `plain_skips=True`.
    """

    def __init__(
        self, graph: Graph, dtype: torch.dtype, device: torch.device | str, backend: str | None = None
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype: got {dtype}; convolutions by split sums are for float16 and bfloat16")
        self._moments = _moments(graph)
        self._arrived = Image("arrived", 0, 0, 0)
        super().__init__(graph, dtype, device, backend)
        convs = [operation.out for operation in graph.operations if isinstance(operation, Conv)]
        self._tiles = max((tiles(1, out.pixels, out.channels) for out in convs), default=0)
        self._steps = [
            (step, [*dying, *(self._moments[image] for image in dying if image in self._moments)])
            for step, dying in self._steps
        ]

    def _rewritten(self, graph: Graph) -> DeviceGraph:
        if any(isinstance(op, Conv) and (len(op.sources) > 1 or op.residual_up) for op in graph.operations):
            raise ValueError("graph: a convolution of two sources or with residual_up; lower with plain_skips=True")
        device = graph.affines[0].weight.device
        return DeviceGraph(graph, torch.zeros(graph.columns, dtype=torch.float32, device=device))

    def _begin(self, x: torch.Tensor) -> Values:
        # Zeros at the start of every run, whatever became of the one before. Each convolution leaves zeros, and the
        # next begins when it has ended: kernels that begin earlier could not share them, nor the memory of parts.
        values = super()._begin(x)
        values[self._arrived] = torch.zeros([x.shape[0] * self._tiles], dtype=torch.int32, device=x.device)
        return values

    def _conv(self, conv: Conv) -> Step:
        [source], out, residual = conv.sources, conv.out, conv.residual
        missing = -source.channels % PACK
        weight = functional.pad(conv_weight(conv).detach(), (0, 0, 0, 0, 0, missing))
        weight = self._constant(weight, self.dtype).contiguous(memory_format=torch.channels_last)
        bias = conv_bias(conv)
        bias = None if bias is None else self._constant(bias)
        padding, scale, backend = conv.padding, conv.scale, self._backend
        moments, arrived = self._moments.get(out), self._arrived

        def step(values: Values, modulation: torch.Tensor) -> None:
            image = values[source]
            if missing:
                image = functional.pad(image.permute(0, 2, 3, 1), (0, missing)).permute(0, 3, 1, 2)
            added = None if residual is None else values[residual]
            given: dict[str, Any] = {"residual": added, "scale": scale, "padding": padding, "arrived": values[arrived]}
            if moments is None:
                values[out] = conv2d_split(image, weight, bias, **given, backend=backend)
            else:
                values[out], values[moments] = conv2d_split(image, weight, bias, **given, moments=True, backend=backend)

        return step

    def _product(self, conv: Conv) -> Step:
        return self._conv(conv)

    def _moments_of(self, norm: GroupNormSilu) -> list[Image]:
        if not all(source in self._moments for source in norm.sources):
            return []
        return [self._moments[source] for source in norm.sources]


def _moments(graph: Graph) -> dict[Image, Image]:
    """For each image of which a norm takes the moments from the convolutions that wrote its sources, their name."""
    convolved = {operation.out for operation in graph.operations if isinstance(operation, Conv)}
    norms = [operation for operation in graph.operations if isinstance(operation, GroupNormSilu)]
    return {
        source: Image(f"{source.name}.moments", source.channels, source.height, source.width)
        for norm in norms
        if norm.addend is None and convolved.issuperset(norm.sources)
        for source in norm.sources
    }
