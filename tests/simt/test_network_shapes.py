"""The GPU's kernels on the host emulator, once at every shape at which EDM's own networks call them."""

from __future__ import annotations

import functools
from typing import Any

import guards
import pytest
import torch
from tolerance import VARIANCE, assert_as_exact_as_eager, assert_same_bits, relative_error

from edm_fast.ops.conv2d_split import PACK, conv2d_split
from edm_fast.ops.group_norm_silu import group_norm_silu
from edm_fast.ops.resample import resample
from edm_fast.ops.residual import residual
from edm_fast.plan.costs import launches
from edm_fast.plan.ir import AddBias, Conv, Graph, GroupNormSilu, Image, Operation, Resample, Resampling, Residual
from edm_fast.plan.lowering import lower
from edm_fast.plan.passes import DeviceGraph, for_library_convolutions
from edm_fast.reference.conv2d_split import chunk_moments
from edm_fast.reference.conv2d_split import conv2d_split as reference_conv2d_split
from edm_fast.reference.group_norm_silu import group_norm_silu as reference_group_norm_silu
from edm_fast.reference.preconditioning import EDMPrecond
from edm_fast.reference.resample import resample as reference_resample
from edm_fast.reference.residual import residual as reference_residual

CIFAR = {"img_resolution": 32, "img_channels": 3, "label_dim": 10, "augment_dim": 9, "channel_mult": [2, 2, 2]}
NETWORKS: dict[str, dict[str, Any]] = {
    "CIFAR-10 DDPM++": {**CIFAR, "model_type": "SongUNet"},
    "CIFAR-10 NCSN++": {
        **CIFAR,
        "model_type": "SongUNet",
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "resample_filter": [1, 3, 3, 1],
    },
    "ImageNet-64 ADM": {"img_resolution": 64, "img_channels": 3, "label_dim": 1000, "model_type": "DhariwalUNet"},
}
# Pixels and channels are the networks'; one sample, since no kernel looks beyond it.
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@functools.cache
def lowered(network: str) -> Graph:
    """The graph of a network. Its weights have shapes alone, but the lowering reads the resample filters."""
    arguments = NETWORKS[network]
    with torch.device("meta"):
        net = EDMPrecond(**arguments).eval().requires_grad_(False)
    taps = torch.tensor(arguments.get("resample_filter", [1, 1]), dtype=torch.float32)
    for module in net.modules():
        if getattr(module, "resample_filter", None) is not None:
            module.resample_filter = taps.outer(taps)[None, None] / taps.sum().square()
    size = arguments["img_resolution"]
    return lower(net.model, size, size, plain_skips=True)


@functools.cache
def device_graph(network: str) -> DeviceGraph:
    """What a GPU executes of a network with a library's convolutions."""
    return for_library_convolutions(lowered(network))


@functools.cache
def convolutions() -> list[tuple[str, Conv]]:
    """One convolution of each shape, as a GPU executes them with convolutions of our own, and where it is first."""
    found: dict[Any, tuple[str, Conv]] = {}
    for network in NETWORKS:
        for conv in lowered(network).operations:
            if isinstance(conv, Conv):
                [source] = conv.sources
                shape = (source.channels, conv.out.channels, source.height, source.width, conv.kernel, conv.padding)
                key = (*shape, conv.residual is not None, conv.scale)
                found.setdefault(key, (f"{network} {conv.out.name} {key}", conv))
    return list(found.values())


def signature(operation: Operation, biased: bool) -> tuple[Any, ...] | None:
    """Equal for operations that a kernel cannot tell apart; None for those of a library."""

    def shape(image: Image) -> tuple[int, int, int]:
        return image.channels, image.height, image.width

    if isinstance(operation, GroupNormSilu):
        return (
            *map(shape, operation.sources),
            operation.module.num_groups,
            operation.module.eps,
            operation.silu,
            operation.pre_bias is not None,
            operation.scale is not None,
            biased,
            operation.resampling,
            operation.plain is not None,
            operation.addend is not None,
            operation.sum_scale,
        )
    if isinstance(operation, Resample):
        return shape(operation.source), operation.resampling
    if isinstance(operation, Residual):
        return shape(operation.a), operation.scale, biased
    if isinstance(operation, AddBias):
        return (shape(operation.source),)
    return None


@functools.cache
def calls(kind: type) -> list[tuple[str, Any, bool]]:
    """One operation of each signature: where it is first, itself, and whether it has a bias of its own."""
    found: dict[Any, tuple[str, Any, bool]] = {}
    for network in NETWORKS:
        rewritten = device_graph(network)
        for operation in rewritten.graph.operations:
            biased = operation in rewritten.biases
            key = signature(operation, biased)
            if isinstance(operation, kind) and key not in found:
                found[key] = f"{network} {operation.out.name} {key}", operation, biased
    return list(found.values())


class Draw:
    """Random tensors, each another: channels have means and deviations of their own, rows are a part of wider ones."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(0)

    def image(self, image: Image) -> torch.Tensor:
        values = torch.randn([1, image.channels, image.height, image.width], generator=self.generator)
        values = values * self.rows(image.channels)[:, :, None, None] + 2 * self.rows(image.channels)[:, :, None, None]
        return values.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def rows(self, channels: int) -> torch.Tensor:
        return torch.randn([1, channels + 5], generator=self.generator)[:, 5:]

    def vector(self, channels: int) -> torch.Tensor:
        return torch.randn([channels], generator=self.generator)


def direction(resampling: Resampling) -> dict[str, Any]:
    if resampling.direction == 0:
        return {}
    return {"up": resampling.direction > 0, "down": resampling.direction < 0, "taps": resampling.taps}


def doubled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items()}


@pytest.fixture
def compare(simt_module, monkeypatch):
    """Runs an op, in two orders of threads, and its reference, and compares them.

    Results are poisoned and guarded, and aligned as they are on a device.
    """
    monkeypatch.setattr(guards, "BAND", 64)

    def emulated(op, arguments, order):
        guarded = guards.Guards()
        simt_module.set_thread_order(order, 0)
        with monkeypatch.context() as patched:
            guarded.install(patched)
            results = op(**arguments, backend="simt")
        guarded.check()
        return results if isinstance(results, tuple) else (results,)

    def run(where, op, reference, tensors, options, expected_launches):
        before = simt_module.launch_count()
        results = emulated(op, {**tensors, **options}, simt_module.ThreadOrder.forward)
        assert simt_module.launch_count() - before == expected_launches, where
        again = emulated(op, {**tensors, **options}, simt_module.ThreadOrder.reverse)
        both = reference(**tensors, **options), reference(**doubled(tensors), **options)
        as_tuples = (part if isinstance(part, tuple) else (part,) for part in both)
        for actual, reversed_order, eager, exact in zip(results, again, *as_tuples, strict=True):
            assert_as_exact_as_eager(actual, eager, exact, what=where)
            assert_same_bits(actual, reversed_order)

    yield run
    simt_module.set_thread_order(simt_module.ThreadOrder.forward, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_group_norm_silu(compare, dtype):
    for where, norm, biased in calls(GroupNormSilu):
        draw, channels = Draw(dtype), sum(source.channels for source in norm.sources)
        tensors = {
            "x": draw.image(norm.sources[0]),
            "weight": draw.vector(channels),
            "bias": draw.vector(channels),
            **({"x2": draw.image(norm.sources[1])} if len(norm.sources) > 1 else {}),
            **({"addend": draw.image(norm.addend)} if norm.addend is not None else {}),
            **({"pre_bias": draw.rows(channels)} if norm.pre_bias is not None or biased else {}),
            **({"scale": draw.rows(channels), "shift": draw.rows(channels)} if norm.scale is not None else {}),
        }
        options = {
            "num_groups": norm.module.num_groups,
            "eps": norm.module.eps,
            "silu": norm.silu,
            "plain": norm.plain is not None,
            "sum_scale": norm.sum_scale,
            **direction(norm.resampling),
        }
        # The count of launches that the plan promises is the kernels' own choice.
        promised = launches(Graph(norm.sources[0], norm.out, [norm]), dtype.itemsize)
        compare(where, group_norm_silu, reference_group_norm_silu, tensors, options, promised)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_resample(compare, dtype):
    assert calls(Resample)
    for where, operation, _ in calls(Resample):
        options = {**direction(operation.resampling), "padding": operation.resampling.padding}
        compare(where, resample, reference_resample, {"x": Draw(dtype).image(operation.source)}, options, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_residual(compare, dtype):
    """Two images, and with a bias if convolutions left one out."""
    assert calls(Residual)
    for where, operation, biased in calls(Residual):
        draw = Draw(dtype)
        tensors = {
            "a": draw.image(operation.a),
            "b": draw.image(operation.b),
            **({"bias": draw.vector(operation.a.channels)} if biased else {}),
        }
        compare(where, residual, reference_residual, tensors, {"scale": operation.scale}, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bias_alone_is_added_in_place(compare, dtype):
    def in_place(a, bias, backend):
        image = a.clone(memory_format=torch.preserve_format)
        return residual(image, None, bias, out=image, backend=backend)

    assert calls(AddBias)
    for where, operation, _ in calls(AddBias):
        draw = Draw(dtype)
        tensors = {"a": draw.image(operation.source), "bias": draw.vector(operation.source.channels)}
        compare(where, in_place, reference_residual, tensors, {}, 1)


_PARTS = 4


@pytest.mark.parametrize("part", range(_PARTS))
def test_conv2d_split(simt_module, monkeypatch, part):
    """With the parts of its sum that each shape has; dtypes take turns, since products are slow here."""
    monkeypatch.setattr(guards, "BAND", 64)
    for index, (where, conv) in list(enumerate(convolutions()))[part::_PARTS]:
        [source] = conv.sources
        draw = Draw([torch.float16, torch.bfloat16][index // _PARTS % 2])
        x = draw.image(source)
        # A network of images has three channels, which a plan fills up.
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, -source.channels % PACK))
        x = x.contiguous(memory_format=torch.channels_last)
        weight = torch.randn([conv.out.channels, x.shape[1], conv.kernel, conv.kernel], generator=draw.generator)
        tensors = {
            "x": x,
            "weight": (weight / (x.shape[1] * conv.kernel**2) ** 0.5).to(draw.dtype),
            "bias": draw.vector(conv.out.channels),
            **({"residual": draw.image(conv.out)} if conv.residual is not None else {}),
        }
        options = {"scale": conv.scale, "padding": conv.padding}
        guarded = guards.Guards()
        before = simt_module.launch_count()
        with monkeypatch.context() as patched:
            guarded.install(patched)
            out, moments = conv2d_split(**tensors, **options, moments=True, backend="simt")
        guarded.check()
        assert simt_module.launch_count() - before == 1
        exact = reference_conv2d_split(**doubled(tensors), **options)
        assert_as_exact_as_eager(out, reference_conv2d_split(**tensors, **options), exact, what=where)
        written = chunk_moments(out.double())
        assert_as_exact_as_eager(moments[..., 0], chunk_moments(out)[..., 0], written[..., 0], what=where)
        assert relative_error(moments[..., 1], written[..., 1]) < VARIANCE, where


def test_the_networks_have_convolutions_in_one_part_and_in_many(simt_module):
    floats = [
        simt_module.conv2d_split_partial(1, conv.out.pixels, source.channels, conv.out.channels, conv.kernel)
        for _, conv in convolutions()
        for source in conv.sources
    ]
    assert len(floats) > 70
    assert {count > 0 for count in floats} == {True, False}


def test_the_networks_have_norms_of_every_kind():
    norms = [norm for _, norm, _ in calls(GroupNormSilu)]
    assert len(norms) > 50
    assert {len(norm.sources) for norm in norms} == {1, 2}
    assert {norm.resampling.direction for norm in norms} == {-1, 0, 1}
    assert {len(norm.resampling.taps) for norm in norms} == {0, 2, 4}
    for attribute in ("pre_bias", "scale", "plain", "addend"):
        assert {getattr(norm, attribute) is None for norm in norms} == {True, False}, attribute
