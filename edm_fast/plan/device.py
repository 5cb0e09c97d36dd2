"""The device's executor of a graph: convolutions and products by PyTorch's libraries, the rest by this library's ops.

It runs on tensors of any device that the ops have kernels for. No host value depends on the device's results, so a run
can be captured (`edm_fast.plan.graphs`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edm_fast.networks.convolution import convolve
from edm_fast.ops.attention import library_attention
from edm_fast.ops.group_norm_silu import group_norm_silu
from edm_fast.ops.resample import resample
from edm_fast.ops.residual import residual
from edm_fast.ops.tensors import channels_last
from edm_fast.plan import memory
from edm_fast.plan.ir import (
    AddBias,
    Attention,
    Columns,
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
from edm_fast.plan.passes import DeviceGraph, for_library_convolutions, overwritten
from edm_fast.plan.weights import conv_weight

Values = dict[Image, torch.Tensor]
# Reads images and modulation rows, and writes images.
Step = Callable[[Values, torch.Tensor], None]


class DevicePlan:
    """Runs a graph: `run(x, modulation)` gives F for x [N, C, H, W] and modulation rows [N or 1, columns].

    Args:
        graph: from `lower(…, plain_skips=True)`.
        dtype: storage of the activations and of the weights of convolutions: float32, bfloat16 or float16.
        device: where the weights are put.
        backend: of the ops; None is the device's.

    `column_biases` [columns] is to be added to every modulation row that `run` gets.
    """

    def __init__(
        self, graph: Graph, dtype: torch.dtype, device: torch.device | str, backend: str | None = None
    ) -> None:
        rewritten = self._rewritten(graph)
        self.graph = rewritten.graph
        self.dtype = dtype
        self.device = torch.device(device)
        self.column_biases = rewritten.column_biases.to(self.device)
        self.algorithms: dict[Any, str] = {}
        self.weight_bytes = 0
        self._backend = backend
        self._biases = rewritten.biases
        self._overwritten = overwritten(self.graph)
        steps = [self._step(operation) for operation in self.graph.operations]
        self._steps = list(zip(steps, _dying(self.graph), strict=True))

    def _rewritten(self, graph: Graph) -> DeviceGraph:
        return for_library_convolutions(graph)

    @property
    def arena_bytes_per_sample(self) -> int:
        """Memory that the activations need if those that are alive at different times share it."""
        return memory.layout(self.graph, self.dtype.itemsize)[1]

    @torch.no_grad()
    def run(self, x: torch.Tensor, modulation: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """F [N, out_channels, H, W] in the plan's dtype, channels-last; x is converted if it is not like that."""
        if x.shape[0] == 0:
            result = x.new_empty([0, self.graph.output.channels, *x.shape[2:]], dtype=self.dtype)
            return result if out is None else out
        values = self._begin(x)
        with torch.autocast(self.device.type, enabled=False):
            for step, dying in self._steps:
                step(values, modulation)
                for image in dying:
                    del values[image]
        result = channels_last(values[self.graph.output])
        return result if out is None else out.copy_(result)

    def _begin(self, x: torch.Tensor) -> Values:
        return {self.graph.input: channels_last(x.to(self.dtype))}

    def _step(self, operation: Operation) -> Step:
        if isinstance(operation, Conv):
            return self._product(operation) if operation.kernel == 1 else self._conv(operation)
        if isinstance(operation, GroupNormSilu):
            return self._norm(operation)
        if isinstance(operation, Resample):
            return self._resample(operation)
        if isinstance(operation, Residual):
            return self._residual(operation)
        if isinstance(operation, AddBias):
            return self._add_bias(operation)
        return self._attention(operation)

    def _constant(self, tensor: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        constant = tensor.detach().to(self.device, dtype, copy=True)
        self.weight_bytes += constant.nbytes
        return constant

    def _bias(self, operation: Operation, dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
        bias = self._biases.get(operation)
        return None if bias is None else self._constant(bias, dtype)

    def _conv(self, conv: Conv) -> Step:
        weight = self._constant(conv_weight(conv), self.dtype).contiguous(memory_format=torch.channels_last)
        [source], out, padding = conv.sources, conv.out, conv.padding

        def step(values: Values, modulation: torch.Tensor) -> None:
            values[out] = convolve(values[source], weight, padding=padding)

        return step

    def _product(self, conv: Conv) -> Step:
        weight = self._constant(conv_weight(conv).flatten(1), self.dtype).contiguous().t()
        bias = self._bias(conv, self.dtype)
        [source], out, onto, scale = conv.sources, conv.out, conv.residual, conv.scale
        in_place = conv in self._overwritten

        def step(values: Values, modulation: torch.Tensor) -> None:
            image = channels_last(values[source])
            rows = _pixel_rows(image)
            if onto is None:
                product = rows @ weight if bias is None else torch.addmm(bias, rows, weight, alpha=scale)
            elif in_place:
                # Written elsewhere, the library would first copy the residual there.
                product = _pixel_rows(channels_last(values[onto])).addmm_(rows, weight, beta=scale, alpha=scale)
            else:
                product = torch.addmm(_pixel_rows(channels_last(values[onto])), rows, weight, beta=scale, alpha=scale)
            samples, _, height, width = image.shape
            values[out] = product.view(samples, height, width, -1).permute(0, 3, 1, 2)

        if onto is None and bias is None and scale != 1.0:
            raise ValueError(f"graph: {out.name} is scaled, and has neither a residual nor a bias")
        return step

    def _norm(self, norm: GroupNormSilu) -> Step:
        module, backend = norm.module, self._backend
        weight, bias = self._constant(module.weight), self._constant(module.bias)
        constant = self._bias(norm)
        static = None if constant is None else constant[None]
        first, second = norm.sources[0], norm.sources[1] if len(norm.sources) > 1 else None
        options: dict[str, Any] = {**_direction(norm.resampling), "eps": module.eps, "silu": norm.silu}
        written = [image for image in writes(norm) if image is not None]
        moments = self._moments_of(norm)

        def step(values: Values, modulation: torch.Tensor) -> None:
            results = group_norm_silu(
                values[first],
                weight,
                bias,
                module.num_groups,
                x2=None if second is None else values[second],
                addend=None if norm.addend is None else values[norm.addend],
                sum_scale=norm.sum_scale,
                pre_bias=static if norm.pre_bias is None else _read(modulation, norm.pre_bias),
                scale=_read(modulation, norm.scale),
                shift=_read(modulation, norm.shift),
                plain=norm.plain is not None,
                moments=[values[image] for image in moments],
                backend=backend,
                **options,
            )
            values.update(zip(written, results if isinstance(results, tuple) else (results,), strict=True))

        return step

    def _moments_of(self, norm: GroupNormSilu) -> list[Image]:
        """The moments of its sources, if they are among the values."""
        return []

    def _resample(self, operation: Resample) -> Step:
        source, out, backend = operation.source, operation.out, self._backend
        options = {**_direction(operation.resampling), "padding": operation.resampling.padding}

        def step(values: Values, modulation: torch.Tensor) -> None:
            values[out] = resample(values[source], backend=backend, **options)

        return step

    def _residual(self, operation: Residual) -> Step:
        a, b, out, scale, backend = operation.a, operation.b, operation.out, operation.scale, self._backend
        bias = self._bias(operation)

        def step(values: Values, modulation: torch.Tensor) -> None:
            values[out] = residual(values[a], values[b], bias, scale, backend=backend)

        return step

    def _add_bias(self, operation: AddBias) -> Step:
        source, out, backend = operation.source, operation.out, self._backend
        bias = self._bias(operation)

        def step(values: Values, modulation: torch.Tensor) -> None:
            image = channels_last(values[source])
            values[out] = residual(image, None, bias, out=image, backend=backend)

        return step

    def _attention(self, operation: Attention) -> Step:
        qkv, out, heads = operation.qkv, operation.out, operation.heads

        def step(values: Values, modulation: torch.Tensor) -> None:
            values[out] = library_attention(values[qkv], heads, packed=True)

        return step


def _dying(graph: Graph) -> list[list[Image]]:
    """For each operation, the images that nothing needs after it."""
    last: dict[Image, int] = {}
    for index, operation in enumerate(graph.operations):
        for image in (*reads(operation), *writes(operation)):
            last[image] = index
    dying: list[list[Image]] = [[] for _ in graph.operations]
    for image, index in last.items():
        if image is not graph.output:
            dying[index].append(image)
    return dying


def _pixel_rows(image: torch.Tensor) -> torch.Tensor:
    """[N·H·W, C] of a dense channels-last image, without a copy."""
    return image.permute(0, 2, 3, 1).flatten(0, 2)


def _read(modulation: torch.Tensor, columns: Columns | None) -> torch.Tensor | None:
    return None if columns is None else modulation[:, columns.start : columns.start + columns.width]


def _direction(resampling: Resampling) -> dict[str, Any]:
    if resampling.direction == 0:
        return {}
    return {"up": resampling.direction > 0, "down": resampling.direction < 0, "taps": resampling.taps}
