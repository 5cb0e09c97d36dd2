"""Our convolutions: as exact as eager PyTorch, in every algorithm, dtype and shape; the same bits for every split."""

from __future__ import annotations

import functools

import pytest
import torch
from tolerance import assert_as_exact_as_eager, assert_pairs_within_their_row, assert_same_bits

from edm_fast.networks.convolution import convolve
from edm_fast.ops.conv2d import conv2d
from edm_fast.ops.conv2d_forms import ALGORITHMS as CODES
from edm_fast.reference.conv2d import conv2d as reference_conv2d

# Tiles have tests of their own.
ALGORITHMS = [name for name in CODES if name != "tiles"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# samples, in channels, out channels, height, width
SHAPES = [
    (2, 64, 64, 8, 8),
    (1, 16, 1, 4, 4),
    (3, 24, 40, 20, 12),
    (1, 1, 17, 5, 3),
    (2, 3, 128, 9, 7),
    (1, 130, 66, 6, 11),
    (1, 256, 80, 16, 16),
    (5, 20, 3, 1, 1),
    (1, 48, 192, 13, 1),
]


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    tensor = torch.randn(*shape, generator=generator).to(dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor


class Case:
    """A layer with everything in its epilogue."""

    def __init__(self, shape, kernel=3, dtype=torch.float32, padding=None):
        samples, channels, self.out_channels, height, width = shape
        pad = kernel // 2 if padding is None else padding
        size = (height + 2 * pad - kernel + 1, width + 2 * pad - kernel + 1)
        self.x = draw(samples, channels, height, width, dtype=dtype)
        # What 16 bits can hold, so that eager starts from the same weights.
        scale = (channels * kernel**2) ** -0.5
        self.weight = (draw(self.out_channels, channels, kernel, kernel, seed=1) * scale).to(dtype).float()
        self.options = {
            "channel_bias": draw(samples, self.out_channels, seed=2).to(dtype).float(),
            "residual": draw(samples, self.out_channels, *size, dtype=dtype, seed=3),
            "scale": 0.75,
            "padding": pad,
        }
        self.bias = draw(self.out_channels, seed=4).to(dtype).float()

    def run(self, algorithm, samples=slice(None), **more):
        options = {k: v[samples] if isinstance(v, torch.Tensor) else v for k, v in self.options.items()}
        return conv2d(self.x[samples], self.weight, self.bias, algorithm=algorithm, **options, **more)

    def reference(self, dtype):
        options = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in self.options.items()}
        return reference_conv2d(self.x.to(dtype), self.weight.to(dtype), self.bias.to(dtype), **options)

    def assert_exact(self, algorithm):
        eager = self.reference(self.x.dtype)
        assert_as_exact_as_eager(self.run(algorithm), eager, self.reference(torch.float64), what=algorithm)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_3x3(shape, algorithm, dtype):
    Case(shape, dtype=dtype).assert_exact(algorithm)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_1x1(shape, dtype):
    Case(shape, kernel=1, dtype=dtype).assert_exact("direct")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("padding", [0, 2, 3])
def test_other_paddings(algorithm, padding):
    Case((2, 20, 24, 8, 6), padding=padding).assert_exact(algorithm)


@pytest.fixture
def pairs(isa):
    if "avx512_bf16" not in isa.available_isas():
        pytest.skip("this processor does not multiply pairs of bfloat16")
    isa.use_isa("avx512_bf16")


@pytest.mark.parametrize(("kernel", "algorithm"), [(1, "direct"), *((3, name) for name in ALGORITHMS)])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[1] % 2 == 0], ids=str)
def test_pairs_of_bfloat16(shape, kernel, algorithm, pairs):
    case = Case(shape, kernel=kernel, dtype=torch.bfloat16)
    eager, exact = case.reference(torch.bfloat16), case.reference(torch.float64)
    assert_pairs_within_their_row(case.run(algorithm, pairs=True), eager, exact, algorithm)


def test_pairs_of_two_sources(pairs):
    first, second = (draw(2, count, 6, 5, dtype=torch.bfloat16, seed=count) for count in (24, 42))
    weight = (draw(33, 66, 3, 3) / 24).bfloat16()
    exact = reference_conv2d(first.double(), weight.double(), x2=second.double())
    ours = conv2d(first, weight, x2=second, algorithm="direct", pairs=True)
    assert_pairs_within_their_row(ours, reference_conv2d(first, weight, x2=second), exact, "direct")


def test_pairs_of_an_image_at_an_odd_address(pairs):
    memory = torch.empty(2 * 8 * 8 * 16 + 1, dtype=torch.bfloat16)
    x, weight = draw(2, 16, 8, 8, dtype=torch.bfloat16), draw(24, 16, 3, 3)
    shifted = memory[1:].view(2, 8, 8, 16).permute(0, 3, 1, 2).copy_(x)
    for algorithm in ALGORITHMS:
        assert_same_bits(
            conv2d(shifted, weight, algorithm=algorithm, pairs=True), conv2d(x, weight, algorithm=algorithm, pairs=True)
        )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_pairs_carry_nan_and_infinity_to_where_eager_has_them(algorithm, pairs):
    case = Case((3, 16, 24, 8, 8), dtype=torch.bfloat16)
    clean = case.run(algorithm, pairs=True)
    for value in (torch.nan, torch.inf):
        case.x[1, 3, 2, 2] = value
        dirty = case.run(algorithm, pairs=True)
        assert not dirty[1].isfinite().all()
        assert_same_bits(dirty[[0, 2]], clean[[0, 2]])


def test_pairs_need_bfloat16_even_channels_and_the_instruction(isa):
    x, weight = draw(1, 16, 8, 8, dtype=torch.bfloat16), draw(4, 16, 3, 3)
    isa.use_isa("baseline")
    with pytest.raises(ValueError, match=r"^pairs: not among the instructions in use, baseline"):
        conv2d(x, weight, algorithm="direct", pairs=True)
    for image in (x.float(), x[:, :15]):
        with pytest.raises(ValueError, match=r"^pairs: need bfloat16 and even"):
            conv2d(image, weight[:, : image.shape[1]], algorithm="direct", pairs=True)
    with pytest.raises(ValueError, match=r"^pairs: the library"):
        conv2d(x, weight, pairs=True)


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_instruction_set(isa, name, algorithm):
    if name not in isa.available_isas():
        pytest.skip(f"this processor has no {name}")
    isa.use_isa(name)
    for dtype in DTYPES:
        Case((2, 24, 40, 10, 12), dtype=dtype).assert_exact(algorithm)
    Case((1, 17, 70, 4, 4), kernel=1).assert_exact("direct")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "shape", [(7, 32, 80, 8, 8), (5, 6, 16, 8, 8), (3, 72, 48, 18, 10), (9, 16, 64, 4, 4)], ids=str
)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "pairs"])
def test_bits_do_not_depend_on_batch_or_threads(shape, algorithm, kind, isa):
    if kind == "pairs" and "avx512_bf16" not in isa.available_isas():
        pytest.skip("this processor does not multiply pairs of bfloat16")
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    case, before = Case(shape, dtype=dtype), torch.get_num_threads()
    run = functools.partial(case.run, pairs=kind == "pairs")
    whole = run(algorithm)
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            for split in ([shape[0]], [1] * shape[0], [2, shape[0] - 2]):
                starts = [sum(split[:i]) for i in range(len(split))]
                parts = [run(algorithm, slice(at, at + n)) for at, n in zip(starts, split, strict=True)]
                assert_same_bits(torch.cat(parts), whole)
    finally:
        torch.set_num_threads(before)


def test_two_sources_are_their_concatenation():
    first, second = draw(2, 24, 6, 5), draw(2, 40, 6, 5, seed=1)
    weight = draw(33, 64, 1, 1)
    exact = reference_conv2d(first.double(), weight.double(), x2=second.double())
    eager = reference_conv2d(first, weight, x2=second)
    for dtype in (torch.float32, torch.bfloat16):
        ours = conv2d(first.to(dtype), weight, x2=second.to(dtype), algorithm="direct")
        assert ours.dtype == dtype
        if dtype == torch.float32:
            assert_as_exact_as_eager(ours, eager, exact)
        else:
            assert (ours.double() - exact).abs().max() < 0.1 * exact.abs().max()
    weight = draw(33, 64, 3, 3)
    exact = reference_conv2d(first.double(), weight.double(), x2=second.double())
    ours = conv2d(first, weight, x2=second, algorithm="direct")
    assert_as_exact_as_eager(ours, reference_conv2d(first, weight, x2=second), exact)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_residual_of_half_the_size_is_repeated(algorithm):
    x, weight, half = draw(2, 16, 8, 12), draw(24, 16, 3, 3), draw(2, 24, 4, 6)
    repeated = half.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    ours = conv2d(x, weight, residual=half, residual_up=True, algorithm=algorithm)
    assert_same_bits(ours, conv2d(x, weight, residual=repeated, algorithm=algorithm))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nan_stays_in_its_sample(algorithm):
    case = Case((3, 16, 24, 8, 8))
    clean = case.run(algorithm)
    case.x[1, 3, 2, 2] = torch.nan
    dirty = case.run(algorithm)
    assert dirty[1].isnan().any()
    assert_same_bits(dirty[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_empty_batch(algorithm):
    assert conv2d(draw(0, 16, 8, 8), draw(4, 16, 3, 3), algorithm=algorithm).shape == (0, 4, 8, 8)


@pytest.mark.parametrize("kernel", [1, 3])
def test_without_input_channels_the_rest_is_left(kernel):
    bias = draw(20)
    out = conv2d(draw(2, 0, 7, 5), draw(20, 0, kernel, kernel), bias, scale=0.5, algorithm="direct")
    assert_same_bits(out, (bias * 0.5)[None, :, None, None].expand(2, 20, 7, 5))


@pytest.mark.parametrize("algorithm", ["library", *ALGORITHMS])
def test_gradients(algorithm):
    case = Case((2, 16, 24, 6, 6))
    tensors = {"x": case.x, "weight": case.weight, "bias": case.bias, **case.options}
    grads = {}
    for kind, dtype in (("ours", torch.float32), ("eager", torch.float32), ("exact", torch.float64)):
        leaves = {
            k: v.to(dtype).clone().requires_grad_() if isinstance(v, torch.Tensor) else v for k, v in tensors.items()
        }
        arguments = dict(leaves)
        x, weight, bias = (arguments.pop(name) for name in ("x", "weight", "bias"))
        if kind == "ours":
            out = conv2d(x, weight, bias, algorithm=algorithm, **arguments)
        else:
            out = reference_conv2d(x, weight, bias, **arguments)
        (out * torch.linspace(-1, 1, out.numel(), dtype=dtype).view(out.shape)).sum().backward()
        grads[kind] = {k: v.grad for k, v in leaves.items() if isinstance(v, torch.Tensor)}
    for name, exact in grads["exact"].items():
        assert_as_exact_as_eager(grads["ours"][name], grads["eager"][name], exact, gradient=True, what=name)


@pytest.mark.parametrize("padding", [0, 1, 2, 3])
def test_gradient_of_the_images_for_every_padding(padding):
    """Up to two it is a convolution of ours."""
    x, weight = draw(2, 24, 7, 6), draw(17, 24, 3, 3)
    found = []
    for function, dtype in (
        (conv2d, torch.float32),
        (reference_conv2d, torch.float32),
        (reference_conv2d, torch.float64),
    ):
        leaf = x.to(dtype).clone().requires_grad_()
        options = {"algorithm": "winograd2x4"} if function is conv2d else {}
        out = function(leaf, weight.to(dtype), padding=padding, **options)
        (out * torch.linspace(-1, 1, out.numel(), dtype=dtype).view(out.shape)).sum().backward()
        found.append(leaf.grad)
    assert_as_exact_as_eager(*found, gradient=True)


def test_gradient_of_a_repeated_residual():
    half = draw(1, 4, 3, 3).requires_grad_()
    out = conv2d(draw(1, 16, 6, 6), draw(4, 16, 3, 3), residual=half, residual_up=True, algorithm="winograd2")
    out.sum().backward()
    assert_same_bits(half.grad, torch.full_like(half, 4.0))


def test_opcheck_and_compile():
    case = Case((2, 16, 24, 8, 8))
    options = case.options
    tensors = (case.x, case.weight, case.bias, None, options["channel_bias"], options["residual"])
    arguments = (*tensors, False, 0.75, 1, 4, False, False)
    torch.library.opcheck(torch.ops.edm_fast.conv2d.default, arguments)
    compiled = torch.compile(lambda x, w: conv2d(x, w, algorithm="winograd4"), backend="aot_eager", fullgraph=True)
    assert_same_bits(compiled(case.x, case.weight), conv2d(case.x, case.weight, algorithm="winograd4"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_with_gradients(dtype):
    x, weight = draw(2, 16, 8, 8, dtype=dtype), draw(24, 16, 3, 3)
    grads = []
    for wrap in (
        lambda function: function,
        lambda function: torch.compile(function, backend="aot_eager", fullgraph=True),
    ):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, weight)]
        wrap(lambda x, w: conv2d(x, w, algorithm="winograd2x4"))(*leaves).sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for eager, ours in zip(*grads, strict=True):
        assert_same_bits(ours, eager)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wide_layers_of_networks_compile(dtype):
    x, weight = draw(1, 64, 16, 16, dtype=dtype), draw(64, 64, 3, 3) / 24
    compiled = torch.compile(convolve, backend="aot_eager", fullgraph=True)
    assert_same_bits(compiled(x, weight), convolve(x, weight))


def test_bad_arguments_are_named():
    x, weight = draw(2, 16, 8, 8), draw(4, 16, 3, 3)
    for name, arguments in {
        "algorithm": {"algorithm": "fft"},
        "x": {"x": x[0]},
        "weight": {"weight": draw(4, 15, 3, 3)},
        "bias": {"bias": draw(5)},
        "channel_bias": {"channel_bias": draw(3, 4)},
        "residual": {"residual": draw(2, 4, 7, 8)},
        "padding": {"padding": -1},
        "x2": {"x2": draw(2, 1, 8, 7), "algorithm": "direct"},
    }.items():
        call = {"x": x, "weight": weight, "algorithm": "winograd4", **arguments}
        with pytest.raises(ValueError, match=f"^{name}: "):
            conv2d(call.pop("x"), call.pop("weight"), **call)
    with pytest.raises(ValueError, match="^algorithm: "):
        conv2d(draw(1, 0, 8, 8), draw(4, 0, 3, 3), algorithm="winograd2")
    with pytest.raises(ValueError, match="^algorithm: got the code 1"):
        torch.ops.edm_fast.conv2d(x, draw(4, 16, 3, 3), *[None] * 4, False, 1.0, 1, 1, False, False)
