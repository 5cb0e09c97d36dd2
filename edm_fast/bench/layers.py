"""The fused layers, and a whole small network, against PyTorch's own: eager in both memory layouts, and compiled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import edm_fast
from edm_fast.bench.names import named
from edm_fast.bench.plain import plain_digits
from edm_fast.bench.registry import Entry
from edm_fast.bench.turns import Case, Peer
from edm_fast.ops.attention import attention
from edm_fast.ops.backends import extension
from edm_fast.ops.conv2d_forms import ALGORITHMS, has_tiles
from edm_fast.ops.group_norm_silu import group_norm_silu
from edm_fast.ops.resample import resample
from edm_fast.ops.residual import residual
from edm_fast.ops.tensors import DTYPE_CODES
from edm_fast.plan.weights import factors, pack
from edm_fast.reference.resample import resample as reference_resample

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 0.03}
_DTYPES = (torch.float32, torch.bfloat16)

Layer = Callable[..., Tensor]


def entries() -> Iterator[Entry]:
    for dtype in _DTYPES:
        for shape in ((1, 256, 32, 32), (8, 256, 32, 32), (8, 256, 16, 16)):
            build = partial(group_norm_silu_case, shape, dtype)
            yield Entry("group_norm_silu", f"group_norm_silu {named(shape, dtype)}", build, shape[2] == 16)
        for up, shape in (
            (False, (8, 256, 32, 32)),
            (True, (8, 256, 16, 16)),
            (False, (64, 3, 32, 32)),
            (True, (64, 3, 16, 16)),
        ):
            name = f"resample {'up' if up else 'down'} {named(shape, dtype)}"
            yield Entry("resample", name, partial(resample_case, shape, dtype, up), shape == (8, 256, 32, 32))
        shape = (8, 256, 32, 32)
        yield Entry("residual", f"residual {named(shape, dtype)}", partial(residual_case, shape, dtype), True)
        for shape, heads in (((1, 256, 16, 16), 1), ((8, 256, 16, 16), 1), ((1, 576, 16, 16), 9)):
            name = f"attention {named(shape, dtype)}, {heads} head{'s' * (heads > 1)}"
            yield Entry("attention", name, partial(attention_case, shape, heads, dtype), heads > 1)
        for shape in ((1, 256, 32, 32), (8, 256, 16, 16)):
            for algorithm in ALGORITHMS:
                if algorithm == "tiles" and not (dtype == torch.bfloat16 and has_tiles()):
                    continue
                name = f"conv2d {algorithm} {named(shape, dtype)}"
                build = partial(conv2d_case, shape, algorithm, dtype)
                yield Entry("conv2d", name, build, algorithm == "winograd2" and shape[0] == 8)
    for batch in (1, 8, 64):
        yield Entry("network", f"digits (shipped), {batch}, float32", partial(digits_case, batch), True)


def layer_case(ours: Layer, peers: dict[str, Layer], images: list[Tensor], moved: int) -> Case:
    """A layer of images: each peer eager in both layouts and compiled, ours in channels-last.

    The first peer says in float64 what is expected.
    """
    last, dtype = [x.contiguous(memory_format=torch.channels_last) for x in images], images[0].dtype
    all_peers: dict[str, Peer] = {}
    for label, function in peers.items():
        for layout, memory_format in LAYOUTS.items():
            given = [x.contiguous(memory_format=memory_format) for x in images]
            run = partial(function, *given)
            all_peers[f"{label} {layout}"] = Peer(run, run)
        compiled = partial(torch.compile(function, dynamic=False), *last)
        all_peers[f"compiled {label}".removesuffix(" eager")] = Peer(compiled, compiled, compiles=True)
    first = next(iter(peers.values()))
    run = partial(ours, *last)
    return Case(run, run, lambda: first(*(x.double() for x in images)), BOUNDS[dtype], all_peers, moved)


def group_norm_silu_case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    """The second norm of a DDPM++ block: silu(norm(x + embedding))."""
    x, channels = torch.randn(shape).to(dtype), shape[1]
    weight, bias, row = torch.rand(channels) + 0.5, torch.randn(channels), torch.randn(shape[0], channels)
    cast = [tensor.to(dtype) for tensor in (weight, bias, row)]

    def eager(x: Tensor) -> Tensor:
        weight, bias, row = (tensor.to(x.dtype) for tensor in cast)
        return functional.silu(functional.group_norm(x + row[:, :, None, None], 32, weight, bias, 1e-6))

    def ours(x: Tensor) -> Tensor:
        return group_norm_silu(x, cast[0], cast[1], 32, pre_bias=cast[2], eps=1e-6)

    return layer_case(ours, {"eager": eager}, [x], 2 * x.nbytes)


def resample_case(shape: tuple[int, ...], dtype: torch.dtype, up: bool) -> Case:
    """NCSN++'s filter."""
    x = torch.randn(shape).to(dtype)
    options: dict[str, Any] = {"up": up, "down": not up, "taps": (1, 3, 3, 1)}
    moved = x.nbytes * 5 if up else x.nbytes * 5 // 4
    return layer_case(partial(resample, **options), {"eager": partial(reference_resample, **options)}, [x], moved)


def residual_case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    """(a + b + bias)·√½, the end of a block."""
    a, b, bias = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype)

    def eager(a: Tensor, b: Tensor) -> Tensor:
        return (a + b + bias.to(a.dtype)[:, None, None]) * math.sqrt(0.5)

    def ours(a: Tensor, b: Tensor) -> Tensor:
        return residual(a, b, bias, math.sqrt(0.5))

    return layer_case(ours, {"eager": eager}, [a, b], 3 * a.nbytes)


def attention_case(shape: tuple[int, ...], heads: int, dtype: torch.dtype) -> Case:
    """EDM's form of attention, with its weights in float32, and PyTorch's fused one."""
    samples, channels, height, width = shape
    qkv = torch.randn(samples, 3 * channels, height, width).to(dtype)

    def parts(qkv: Tensor) -> tuple[Tensor, ...]:
        return qkv.reshape(samples * heads, channels // heads, 3, height * width).unbind(2)

    def eager(qkv: Tensor) -> Tensor:
        q, k, v = parts(qkv)
        accumulate = torch.promote_types(q.dtype, torch.float32)
        scores = torch.bmm(q.transpose(1, 2).to(accumulate), (k / math.sqrt(k.shape[1])).to(accumulate))
        return torch.bmm(v, scores.softmax(dim=2).to(v.dtype).transpose(1, 2)).reshape(shape)

    def fused(qkv: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2)[None] for part in parts(qkv))
        attended = functional.scaled_dot_product_attention(q, k, v)[0]
        return attended.transpose(1, 2).reshape(shape)

    moved = qkv.nbytes * 4 // 3
    return layer_case(lambda qkv: attention(qkv, heads), {"eager": eager, "SDPA": fused}, [qkv], moved)


def conv2d_case(shape: tuple[int, ...], algorithm: str, dtype: torch.dtype) -> Case:
    """A 3×3 convolution with weights that are packed beforehand, as a prepared network has them.

    In bfloat16 by pairs where the processor multiplies these.
    """
    channels = shape[1]
    x, weight = torch.randn(shape).to(dtype), (torch.randn(channels, channels, 3, 3) / 48).to(dtype)
    bias = torch.randn(channels).to(dtype)
    layouts = [weight, weight.contiguous(memory_format=torch.channels_last)]

    def eager(x: Tensor) -> Tensor:
        weight = layouts[x.is_contiguous(memory_format=torch.channels_last)]
        return functional.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=1)

    pairs = dtype == torch.bfloat16 and extension().cpu.multiplies_pairs()
    ours = packed_conv2d(weight.float(), bias.float(), algorithm, pairs)
    return layer_case(ours, {"eager": eager}, [x], 2 * x.nbytes + weight.nbytes)


def packed_conv2d(weight: Tensor, bias: Tensor, algorithm: Any, pairs: bool) -> Callable[[Tensor], Tensor]:
    """A convolution by the CPU kernel, packed once; its argument is channels-last."""
    cpu, threads, code = extension().cpu, torch.get_num_threads(), ALGORITHMS[algorithm]
    out_channels, _, kernel, _ = weight.shape
    packed = pack(weight, algorithm, pairs)

    def run(x: Tensor) -> Tensor:
        samples, channels, height, width = x.shape
        out = torch.empty_like(x)
        size, sources, none = (samples, height, width), (channels, 0), (0, 0)
        layer = (size, sources, out_channels, kernel, kernel // 2, code, factors(pairs), DTYPE_CODES[x.dtype])
        inputs = (x.data_ptr(), 0, packed.data_ptr(), bias.data_ptr(), none, 0, 0, 1.0)
        cpu.conv2d(*layer, *inputs, out.data_ptr(), threads)
        return out

    return run


def digits_case(batch: int) -> Case:
    """One forward of the shipped model's inner network, for one noise level and a class per image."""
    x = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    c_noise, labels = torch.tensor([0.2]), functional.one_hot(torch.arange(batch) % 10, 10).float()
    prepared, exact = edm_fast.prepare(edm_fast.load().eval()).network, plain_digits().double()
    last = x.contiguous(memory_format=torch.channels_last)

    def ours() -> Tensor:
        return prepared(last, c_noise, labels)

    peers = {}
    for layout, memory_format in LAYOUTS.items():
        network = plain_digits(memory_format).model
        run = partial(network, x.contiguous(memory_format=memory_format), c_noise, labels)
        peers[f"eager {layout}"] = Peer(run, run)
    compiled = partial(torch.compile(network, dynamic=False), last, c_noise, labels)
    peers["compiled channels-last"] = Peer(compiled, compiled, compiles=True)

    def expected() -> Tensor:
        return exact.model(x.double(), c_noise.double(), labels.double())

    return Case(ours, ours, expected, 1e-3, peers, targets={"eager": 5.0})
