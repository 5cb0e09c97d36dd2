"""The CPU's executor of a graph: everything resolved to addresses and offsets, one call per forward."""

from __future__ import annotations

from typing import Any

import torch

from edm_fast.ops.backends import extension
from edm_fast.ops.tensors import DTYPE_CODES
from edm_fast.plan import memory
from edm_fast.plan.algorithms import CODES, choose, takes_pairs
from edm_fast.plan.costs import flops
from edm_fast.plan.ir import (
    Attention,
    Columns,
    Conv,
    Graph,
    GroupNormSilu,
    Image,
    Resample,
    Resampling,
    Residual,
)
from edm_fast.plan.weights import Pool, conv_bias, conv_weight, factors, pack, packed_size

# The places of csrc/include/edm_fast/plan.h.
_ABSENT, _ARENA, _INPUT, _OUTPUT, _MODULATION = range(5)
_NOWHERE = (_ABSENT, 0)

# Up to this many operations (multiplications and additions) per sample, threads split the batch and not the layers.
_SMALL_NETWORK = 400e6
# About so many bytes of activations are in flight: more samples at once would only leave the caches.
_ARENA_BYTES = 96 << 20
_SMALL_ARENA_BYTES = 1 << 20
_FEWEST_AT_ONCE = 8


class CpuPlan:
    """Runs a graph: `run(x, modulation)` gives F for x [N, C, H, W] and modulation rows [N or 1, columns].

    Args:
        graph: from `lower`.
        dtype: storage of the activations: float32, bfloat16 or float16. Arithmetic is float32, but for factors in
            bfloat16 where the processor multiplies pairs of them.
        algorithm: "auto", "winograd4", "winograd2x4", "winograd2", "direct" or "tiles", for the 3×3 convolutions.
    """

    def __init__(self, graph: Graph, dtype: torch.dtype, algorithm: str) -> None:
        self.graph = graph
        self.dtype = dtype
        self.isa = extension().cpu.isa()
        self._constants: list[torch.Tensor] = []
        self.weight_bytes = 0
        element = dtype.itemsize
        self._offsets, self.arena_bytes_per_sample = memory.layout(graph, element)
        self._plan: Any = extension().cpu.Plan(DTYPE_CODES[dtype])
        convs = [operation for operation in graph.operations if isinstance(operation, Conv)]
        self._pairs = {conv: takes_pairs(conv, dtype) for conv in convs}
        self.algorithms = {conv: choose(conv, algorithm, self._pairs[conv]) for conv in convs}
        self._pool = Pool([self._packed_size(conv) for conv in convs])
        for operation in graph.operations:
            self._add(operation)
        small = sum(flops(operation) for operation in graph.operations) <= _SMALL_NETWORK
        budget = _SMALL_ARENA_BYTES if small else _ARENA_BYTES
        self._plan.finish(
            self.arena_bytes_per_sample,
            graph.input.elements * element,
            graph.output.elements * element,
            small,
            max(_FEWEST_AT_ONCE, budget // max(self.arena_bytes_per_sample, 1)),
        )

    def _add(self, operation: Any) -> None:
        if isinstance(operation, Conv):
            self._add_conv(operation)
        elif isinstance(operation, GroupNormSilu):
            self._add_norm(operation)
        elif isinstance(operation, Resample):
            source = operation.source
            self._plan.resample(
                (source.height, source.width),
                source.channels,
                _filter(operation.resampling),
                self._place(source),
                self._place(operation.out),
            )
        elif isinstance(operation, Residual):
            places = [self._place(image) for image in (operation.a, operation.b, operation.out)]
            self._plan.residual(operation.out.pixels, operation.out.channels, operation.scale, *places)
        elif isinstance(operation, Attention):
            out = operation.out
            self._plan.attention(
                operation.heads,
                out.pixels,
                out.channels // operation.heads,
                self._place(operation.qkv),
                self._place(out),
            )
        else:
            raise TypeError(f"operation: {type(operation).__name__} has no CPU step")

    def _packed_size(self, conv: Conv) -> int:
        return packed_size(conv_weight(conv), self.algorithms[conv], self._pairs[conv])

    def _add_conv(self, conv: Conv) -> None:
        algorithm, pairs = self.algorithms[conv], self._pairs[conv]
        source = conv.sources[0]
        packed = pack(conv_weight(conv), algorithm, pairs, self._pool.take(self._packed_size(conv)))
        weight = self._constant(packed)
        bias = conv_bias(conv)
        self._plan.conv2d(
            (source.height, source.width),
            _two_channels(conv.sources),
            conv.out.channels,
            conv.kernel,
            conv.padding,
            CODES[algorithm],
            factors(pairs),
            weight,
            0 if bias is None else self._constant(bias),
            conv.scale,
            int(conv.residual_up),
            self._two_places(conv.sources),
            _NOWHERE if conv.residual is None else self._place(conv.residual),
            self._place(conv.out),
        )

    def _add_norm(self, norm: GroupNormSilu) -> None:
        if norm.addend is not None:
            raise TypeError("operation: a GroupNormSilu with an addend has no CPU step")
        source, module = norm.sources[0], norm.module
        weight, bias = (
            self._constant(parameter.detach().to("cpu", torch.float32, copy=True).contiguous())
            for parameter in (module.weight, module.bias)
        )
        self._plan.group_norm_silu(
            (source.height, source.width),
            _two_channels(norm.sources),
            (weight, bias, module.num_groups, module.eps, norm.silu),
            _filter(norm.resampling),
            self._two_places(norm.sources),
            _columns(norm.pre_bias),
            _columns(norm.scale),
            _columns(norm.shift),
            self._place(norm.out),
            _NOWHERE if norm.plain is None else self._place(norm.plain),
        )

    def _constant(self, tensor: torch.Tensor) -> int:
        self._constants.append(tensor)
        self.weight_bytes += tensor.nbytes
        return tensor.data_ptr()

    def _place(self, image: Image) -> tuple[int, int]:
        if image is self.graph.input:
            return (_INPUT, 0)
        if image is self.graph.output:
            return (_OUTPUT, 0)
        return (_ARENA, self._offsets[image])

    def _two_places(self, sources: tuple[Image, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
        return self._place(sources[0]), self._place(sources[1]) if len(sources) > 1 else _NOWHERE

    def run(self, x: torch.Tensor, modulation: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """F [N, out_channels, H, W] in the plan's dtype, channels-last; x likewise (converted if it is not)."""
        expected = (self.graph.input.channels, self.graph.input.height, self.graph.input.width)
        if x.dim() != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(f"x: got shape {list(x.shape)}; this plan needs [N, {', '.join(map(str, expected))}]")
        if x.device.type != "cpu":
            raise ValueError(f"x: is on {x.device}; this plan runs on the CPU")
        if extension().cpu.isa() != self.isa:
            raise RuntimeError(f"this plan is packed for {self.isa}, and {extension().cpu.isa()} is in use now")
        columns = self.graph.columns
        if modulation.dim() != 2 or modulation.shape[0] not in (1, x.shape[0]) or modulation.shape[1] != columns:
            raise ValueError(
                f"modulation: got shape {list(modulation.shape)}; [{x.shape[0]}, {columns}] or [1, {columns}] is needed"
            )
        source = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        modulation = modulation.to(torch.float32).contiguous()
        if out is None:
            shape = (x.shape[0], self.graph.output.channels, x.shape[2], x.shape[3])
            out = torch.empty(shape, dtype=self.dtype, device="cpu", memory_format=torch.channels_last)
        stride = 0 if modulation.shape[0] == 1 else modulation.stride(0)
        self._plan.run(
            x.shape[0], source.data_ptr(), out.data_ptr(), (modulation.data_ptr(), stride), torch.get_num_threads()
        )
        return out

    def memory_bytes(self, batch: int) -> int:
        """Working memory of a run: activations and the largest scratch, as one block that is kept between runs."""
        return self._plan.memory(batch, torch.get_num_threads())


def _two_channels(sources: tuple[Image, ...]) -> tuple[int, int]:
    return sources[0].channels, sources[1].channels if len(sources) > 1 else 0


def _columns(columns: Columns | None) -> tuple[int, int]:
    return _NOWHERE if columns is None else (_MODULATION, columns.start)


def _filter(resampling: Resampling) -> tuple[int, int, list[float]]:
    return resampling.direction, resampling.padding, list(resampling.taps)
