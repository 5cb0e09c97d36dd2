"""Convolutions of few images on tensor cores: exact sums, any extents, moments, and the same bits in every split."""

from __future__ import annotations

import importlib

import pytest
import torch
from tolerance import VARIANCE, assert_as_exact_as_eager, assert_same_bits, relative_error
from torch._subclasses.fake_tensor import FakeTensorMode

from edm_fast.ops import backends
from edm_fast.ops.conv2d_split import conv2d_split, tiles
from edm_fast.reference.conv2d_split import chunk_moments
from edm_fast.reference.conv2d_split import conv2d_split as reference

# The package has a function of the same name.
conv2d_split_module = importlib.import_module("edm_fast.ops.conv2d_split")
DTYPES = [torch.float16, torch.bfloat16]
# Samples, channels in and out, height, width, kernel, padding.
SMALL = [
    (1, 8, 1, 1, 1, 3, 1),
    (3, 24, 17, 3, 5, 3, 1),
    (2, 72, 66, 9, 7, 3, 1),
    (1, 136, 65, 8, 8, 3, 1),
    (2, 64, 64, 8, 8, 1, 0),
    (1, 200, 3, 5, 13, 1, 0),
    (1, 8, 8, 4, 4, 3, 0),
    (1, 16, 8, 3, 3, 3, 2),
    (2, 16, 8, 2, 2, 1, 1),
]
LARGE = [(1, 256, 256, 16, 16, 3, 1), (257, 16, 24, 4, 4, 3, 1), (1, 512, 256, 8, 8, 3, 1)]


@pytest.fixture(params=["reference", "simt", "cuda"])
def backend(request):
    if request.param == "cuda" and not (torch.cuda.is_available() and backends.extension().cuda.architectures):
        pytest.skip("no CUDA device, or no CUDA kernels in this build")
    if request.param == "simt":
        request.getfixturevalue("simt_module")
    return request.param


def draw(shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def inputs(case, dtype, device="cpu"):
    samples, channels, out_channels, height, width, kernel, padding = case
    grown = 2 * padding - kernel + 1
    given = {
        "x": draw([samples, channels, height, width], 0, dtype),
        "weight": draw([out_channels, channels, kernel, kernel], 1, dtype) / (channels * kernel * kernel) ** 0.5,
        "bias": draw([out_channels], 2, torch.float32),
        "residual": draw([samples, out_channels, height + grown, width + grown], 3, dtype),
    }
    last = torch.channels_last
    return {
        name: (tensor.contiguous(memory_format=last) if tensor.dim() == 4 else tensor).to(device)
        for name, tensor in given.items()
    }


def to(tensors, dtype):
    return {name: tensor.cpu().to(dtype) for name, tensor in tensors.items()}


def assert_moments(moments, out, what):
    """They are those of `out`, as it was rounded."""
    eager, exact = chunk_moments(out.cpu().float()), chunk_moments(out.cpu().double())
    assert_as_exact_as_eager(moments[..., 0], eager[..., 0], exact[..., 0], what=f"{what} means")
    if float(exact[..., 1].max()) > 0:
        assert relative_error(moments[..., 1], exact[..., 1]) < VARIANCE, what


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("present", ["", "bias", "residual", "bias residual"])
def test_as_exact_as_eager(backend, device, guards, present, dtype):
    for case in SMALL if backend == "simt" else SMALL + LARGE:
        given = {name: tensor for name, tensor in inputs(case, dtype, device).items() if name in "x weight " + present}
        options = {"scale": 0.75, "padding": case[-1]}
        eager, exact = reference(**to(given, dtype), **options), reference(**to(given, torch.float64), **options)
        out, moments = conv2d_split(**given, **options, moments=True, backend=backend)
        assert_as_exact_as_eager(out, eager, exact, what=str(case))
        if backend != "reference":
            assert_moments(moments, out, str(case))
            assert out.is_contiguous(memory_format=torch.channels_last)


def test_a_whole_layer_is_right(backend, device):
    """256 channels at 16×16: 16 tiles of 36 steps, in parts."""
    case = (1, 256, 256, 16, 16, 3, 1)
    given = inputs(case, torch.bfloat16, device)
    out = conv2d_split(**given, backend=backend)
    eager, exact = reference(**to(given, torch.bfloat16)), reference(**to(given, torch.float64))
    assert_as_exact_as_eager(out, eager, exact)


@pytest.mark.parametrize("case", [(5, 72, 66, 9, 7, 3, 1), (3, 320, 40, 8, 8, 3, 1)])
def test_a_sample_has_the_same_bits_in_every_batch_and_run(backend, device, case):
    if backend == "reference":
        pytest.skip("PyTorch's own convolutions may sum differently for each batch")
    given = inputs(case, torch.float16, device)
    out, moments = conv2d_split(**given, moments=True, backend=backend)
    again, again_moments = conv2d_split(**given, moments=True, backend=backend)
    assert_same_bits(again, out)
    assert_same_bits(again_moments, moments)
    for start, end in ((0, 1), (1, case[0])):
        part = {name: t[start:end] if name in ("x", "residual") else t for name, t in given.items()}
        alone, alone_moments = conv2d_split(**part, moments=True, backend=backend)
        assert_same_bits(alone, out[start:end])
        assert_same_bits(alone_moments, moments[start:end])


def test_counters_are_zeros_again_and_can_be_longer(backend, device):
    if backend == "reference":
        pytest.skip("it has no counters")
    case = (2, 320, 72, 8, 8, 3, 1)
    given = inputs(case, torch.bfloat16, device)
    arrived = torch.zeros([tiles(2, 64, 72) + 3], dtype=torch.int32, device=device)
    once = conv2d_split(**given, arrived=arrived, backend=backend)
    assert not arrived.any()
    assert_same_bits(conv2d_split(**given, arrived=arrived, backend=backend), once)
    assert_same_bits(conv2d_split(**given, backend=backend), once)


def test_nan_and_infinity_reach_what_they_reach_in_eager(backend, device):
    case = (2, 72, 24, 9, 7, 3, 1)
    for value in (torch.nan, torch.inf):
        given = inputs(case, torch.float16, device)
        given["x"][0, 70, 4, 3] = value
        given["residual"][1, 5, 0, 6] = value
        out = conv2d_split(**given, backend=backend)
        eager = reference(**to(given, torch.float16))
        assert_same_bits(out.isfinite(), eager.isfinite())


def test_layouts_that_are_copied_and_dtypes_that_are_converted(backend, device):
    case = (2, 16, 24, 5, 6, 3, 1)
    given = inputs(case, torch.float16, device)
    wanted = conv2d_split(**given, backend=backend)
    strange = {
        "x": given["x"].contiguous(),
        "weight": given["weight"].contiguous().double(),
        "bias": given["bias"].double(),
        "residual": given["residual"].float(),
    }
    if backend == "reference":
        strange["residual"] = given["residual"].contiguous()
    assert_same_bits(conv2d_split(**strange, backend=backend), wanted)
    # Memory that begins off any alignment.
    shifted = torch.empty(given["x"].numel() + 1, dtype=torch.float16, device=device)[1:]
    view = shifted.view(2, 5, 6, 16).permute(0, 3, 1, 2)
    view.copy_(given["x"])
    assert_same_bits(conv2d_split(**{**given, "x": view}, backend=backend), wanted)


def test_no_samples_give_no_images(backend, device):
    given = inputs((1, 8, 16, 4, 4, 3, 1), torch.float16, device)
    out, moments = conv2d_split(given["x"][:0], given["weight"], moments=True, backend=backend)
    assert out.shape == (0, 16, 4, 4)
    assert moments.shape == (0, 1, 16, 2)


def test_bad_arguments_are_named(backend, device):
    given = inputs((2, 16, 24, 5, 6, 3, 1), torch.float16, device)

    def refused(error, words, **changes):
        with pytest.raises(error, match=words):
            conv2d_split(**{**given, **changes}, backend=backend)

    refused(ValueError, r"^weight: shape is \(24, 16, 3, 1\)", weight=given["weight"][..., :1])
    refused(ValueError, r"^x: 12 channels; a multiple of 8", x=given["x"][:, :12], weight=given["weight"][:, :12])
    refused(ValueError, r"^bias: shape is \(5,\); it must be \(24,\)", bias=given["bias"][:5])
    refused(ValueError, r"^residual: shape", residual=given["residual"][:, :, 1:])
    refused(ValueError, r"^padding: got -1", padding=-1)
    refused(ValueError, r"^x: 2x6 pixels are too few for a 3x3 weight", padding=0, x=given["x"][:, :, :2])
    zero = torch.zeros([1, 1, 1, 1], dtype=torch.float16, device=device)
    many = r"elements are counted in 31 bits"
    refused(ValueError, rf"^x: images of 16x65536x2048; {many}", x=zero.expand(1, 16, 2**16, 2**11), residual=None)
    wide = {"bias": None, "residual": None}
    refused(ValueError, rf"^weight: shape is .*; {many}", weight=zero.expand(15 * 10**6, 16, 3, 3), **wide)
    refused(ValueError, rf"^weight: shape is .*; {many}", weight=zero.expand(65535 * 64 + 1, 16, 1, 1), **wide)
    refused(ValueError, r"^weight: shape is \(\)", weight=zero[0, 0, 0, 0])
    refused(ValueError, r"^x: shape is \(2, 16, 5\)", x=given["x"][..., 0])
    refused(ValueError, r"^x: gradients are needed", weight=given["weight"].clone().requires_grad_())
    if backend != "reference":
        refused(TypeError, r"^x: dtype is torch.float32; it must be float16 or bfloat16", x=given["x"].float())
        short = torch.zeros([1], dtype=torch.int32, device=device)
        refused(ValueError, r"^arrived: shape is \(1,\); 2 zeros", arrived=short)
        refused(
            TypeError, r"^arrived: dtype is torch.int64", arrived=torch.zeros([2], dtype=torch.int64, device=device)
        )


def test_memory_off_any_alignment_is_copied_by_the_operator_too(simt_module):
    """Compiled code calls it without the function around it."""
    given = inputs((1, 16, 24, 5, 6, 3, 1), torch.float16)
    wanted = conv2d_split(given["x"], given["weight"], backend="simt")
    shifted = {}
    for name in ("x", "weight"):
        memory = torch.empty(given[name].numel() + 1, dtype=torch.float16)[1:]
        n, c, h, w = given[name].shape
        shifted[name] = memory.view(n, h, w, c).permute(0, 3, 1, 2).copy_(given[name])
        assert shifted[name].data_ptr() % 16
    out = torch.full_like(wanted, torch.nan)
    conv2d_split_module._run("simt", *shifted.values(), None, None, 1.0, 1, out, None, None)
    assert_same_bits(out, wanted)
    apart = torch.zeros([1, 1, 24, 4])[..., ::2]
    with pytest.raises(ValueError, match=r"^moments: strides are \(96, 96, 4, 2\); it must be contiguous"):
        conv2d_split_module._run("simt", given["x"], given["weight"], None, None, 1.0, 1, out, apart, None)


def test_shapes_are_known_without_a_device():
    """As torch.compile asks for them. A PyTorch without CUDA makes no tensor contiguous, so these are."""
    dense = {"device": "cuda", "memory_format": torch.channels_last}
    with FakeTensorMode():
        x = torch.empty([2, 16, 9, 15], dtype=torch.bfloat16, **dense)
        weight = torch.empty([24, 16, 3, 3], **dense)
        out, moments = conv2d_split(x, weight, moments=True)
        assert (out.shape, out.dtype, out.device.type) == ((2, 24, 9, 15), torch.bfloat16, "cuda")
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert (moments.shape, moments.dtype) == ((2, 3, 24, 2), torch.float32)
        with pytest.raises(TypeError, match="^x: dtype is torch.float32"):
            conv2d_split(x.float(), weight)


def test_the_cpu_has_another_op():
    x = torch.zeros([1, 8, 4, 4], dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="^x: is on the CPU; conv2d_split runs on CUDA, and conv2d on the CPU"):
        conv2d_split(x, torch.zeros([8, 8, 3, 3]))
