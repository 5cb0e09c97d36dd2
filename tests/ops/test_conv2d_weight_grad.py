"""The gradient of 3×3 weights by Winograd's forms: as exact as eager PyTorch, and the same bits on any threads."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_as_exact_as_eager, assert_same_bits

from edm_fast.ops.conv2d import conv2d
from edm_fast.ops.conv2d_forms import ALGORITHMS, fastest_weight_gradient
from edm_fast.ops.conv2d_weight_grad import conv2d_weight_grad

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMS = [name for name in ALGORITHMS if name.startswith("winograd")]
# samples, in channels, out channels, height, width
SHAPES = [
    (2, 64, 64, 16, 16),
    (8, 64, 64, 32, 32),
    (3, 24, 40, 20, 12),
    (1, 1, 17, 5, 3),
    (2, 3, 128, 9, 7),
    (1, 130, 66, 6, 11),
    (5, 20, 3, 1, 1),
    (40, 48, 70, 13, 14),
]


def draw(shape, dtype=torch.float32, padding=1, seed=0):
    samples, in_channels, out_channels, height, width = shape
    generator = torch.Generator().manual_seed(seed + sum(shape))
    size = height + 2 * padding - 2, width + 2 * padding - 2
    return [
        torch.randn(samples, channels, *extents, generator=generator)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
        for channels, extents in ((in_channels, (height, width)), (out_channels, size))
    ]


def eager(x, grad, padding=1):
    weight = x.new_empty(grad.shape[1], x.shape[1], 3, 3)
    wanted = [False, True, False]
    arguments = (grad, x, weight, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], 1, wanted)
    return torch.ops.aten.convolution_backward(*arguments)[1]


def assert_exact(x, grad, algorithm, padding=1):
    ours = conv2d_weight_grad(x, grad, padding, algorithm=algorithm)
    exact = eager(x.double(), grad.double(), padding)
    # Sums are in float32 whatever the dtype, and so is what comes out.
    assert_as_exact_as_eager(ours, eager(x.float(), grad.float(), padding), exact, gradient=True, what=algorithm)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("algorithm", ["winograd2", "winograd2x4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(shape, algorithm, dtype):
    assert_exact(*draw(shape, dtype), algorithm)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(32, 64, 64, 32, 32), (8, 128, 96, 61, 64), (230, 80, 64, 12, 12)], ids=str)
def test_the_form_that_is_chosen_is_exact_enough(shape, dtype):
    algorithm = fastest_weight_gradient(shape[0], *shape[3:])
    assert algorithm == "winograd4"
    assert_exact(*draw(shape, dtype), algorithm)


@pytest.mark.parametrize(
    ("shape", "seeds"),
    [((32, 64, 64, 16, 16), [0, 262]), ((8, 64, 64, 32, 32), [0, 72, 201, 224]), ((32, 64, 64, 32, 32), [0, 1, 2])],
    ids=str,
)
def test_a_few_large_values(shape, seeds):
    """Of the first two shapes all draws but 0 are some on which F(4×4) would go beyond the rule."""
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        x, grad = (image * image.clone().normal_(generator=generator).exp() for image in draw(shape, seed=seed))
        assert_exact(x, grad, fastest_weight_gradient(shape[0], *shape[3:]))


def test_few_tiles_take_the_more_exact_form():
    assert fastest_weight_gradient(31, 32, 32) == "winograd2x4"
    assert fastest_weight_gradient(31, 34, 33) == "winograd4"


@pytest.mark.parametrize("algorithm", FORMS)
@pytest.mark.parametrize("padding", [0, 2, 3])
def test_other_paddings(algorithm, padding):
    shape = (2, 20, 24, 8, 6)
    x, grad = draw(shape, padding=padding)
    ours, exact = conv2d_weight_grad(x, grad, padding, algorithm=algorithm), eager(x.double(), grad.double(), padding)
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("algorithm", FORMS)
def test_more_channels_than_are_summed_at_once(algorithm):
    """C holds 8 million floats: those of 1,100 × 500 channels in two or three parts."""
    x, grad = draw((1, 1100, 500, 5, 6))
    ours, exact = conv2d_weight_grad(x, grad, algorithm=algorithm), eager(x.double(), grad.double())
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("algorithm", ["winograd2", "winograd2x4"])
def test_every_instruction_set(isa, name, algorithm):
    if name not in isa.available_isas():
        pytest.skip(f"this processor has no {name}")
    isa.use_isa(name)
    for dtype in DTYPES:
        assert_exact(*draw((2, 24, 43, 10, 12), dtype), algorithm)


@pytest.mark.parametrize("algorithm", FORMS)
@pytest.mark.parametrize("shape", [(7, 32, 80, 8, 8), (40, 72, 48, 18, 10), (1, 6, 5, 4, 4)], ids=str)
def test_bits_do_not_depend_on_threads(shape, algorithm):
    x, grad = draw(shape)
    before, whole = torch.get_num_threads(), conv2d_weight_grad(x, grad, algorithm=algorithm)
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            assert_same_bits(conv2d_weight_grad(x, grad, algorithm=algorithm), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("algorithm", FORMS)
def test_nan_reaches_the_weights_of_its_channels_only(algorithm):
    x, grad = draw((3, 20, 24, 8, 8))
    clean = conv2d_weight_grad(x, grad, algorithm=algorithm)
    x[1, 3, 2, 2] = torch.nan
    dirty = conv2d_weight_grad(x, grad, algorithm=algorithm)
    assert dirty[:, 3].isnan().all()
    others = [i for i in range(20) if i != 3]
    assert_same_bits(dirty[:, others], clean[:, others])


@pytest.mark.parametrize("algorithm", FORMS)
def test_no_images_give_zeros(algorithm):
    x, grad = draw((0, 16, 4, 8, 8))
    assert_same_bits(conv2d_weight_grad(x, grad, algorithm=algorithm), torch.zeros(4, 16, 3, 3))


@pytest.mark.parametrize(("inputs", "outputs"), [(0, 4), (4, 0), (0, 0)])
def test_no_channels(inputs, outputs):
    x, grad = draw((2, inputs, outputs, 8, 8))
    assert conv2d_weight_grad(x, grad, algorithm="winograd4").shape == (outputs, inputs, 3, 3)


def test_any_layout_and_a_broadcast_gradient():
    x, _ = draw((2, 16, 4, 8, 8))
    grad = torch.tensor(0.5).expand(2, 4, 8, 8)
    ours = conv2d_weight_grad(x.contiguous(), grad, algorithm="winograd2x4")
    copies = [image.contiguous(memory_format=torch.channels_last) for image in (x, grad)]
    assert_same_bits(ours, conv2d_weight_grad(*copies, algorithm="winograd2x4"))


def test_it_is_the_backward_pass_of_our_forms():
    x, grad = draw((32, 64, 72, 32, 32))
    weight = torch.zeros(72, 64, 3, 3, requires_grad=True)
    conv2d(x, weight, algorithm="winograd4").backward(grad)
    assert_same_bits(weight.grad, conv2d_weight_grad(x, grad, algorithm="winograd4"))


def test_opcheck_and_compile():
    x, grad = draw((2, 16, 24, 8, 8))
    torch.library.opcheck(torch.ops.edm_fast.conv2d_weight_grad.default, (x, grad, 1, 24))
    weight = torch.ones(24, 16, 3, 3, requires_grad=True)
    compiled = torch.compile(lambda x, w: conv2d(x, w, algorithm="winograd2x4"), backend="aot_eager", fullgraph=True)
    compiled(x, weight).backward(grad)
    assert_same_bits(weight.grad, conv2d_weight_grad(x, grad, algorithm="winograd2x4"))


def test_bad_arguments_are_named():
    x, grad = draw((2, 16, 24, 8, 8))
    for name, arguments in {
        "algorithm": {"algorithm": "direct"},
        "x": {"x": x[0]},
        "grad": {"grad": grad[:, :, 1:]},
        "padding": {"padding": -1},
    }.items():
        call = {"x": x, "grad": grad, "algorithm": "winograd4", **arguments}
        with pytest.raises(ValueError, match=f"^{name}: "):
            conv2d_weight_grad(call.pop("x"), call.pop("grad"), **call)
    for wrong in (grad.double(), grad[:1], grad[..., 0]):
        with pytest.raises(ValueError, match=r"^grad: got torch.float.* is needed$"):
            conv2d_weight_grad(x, wrong, algorithm="winograd4")
    for padding in (1.5, None):
        with pytest.raises(TypeError, match="^padding: got"):
            conv2d_weight_grad(x, grad, padding, algorithm="winograd4")
    with pytest.raises(ValueError, match="^x: is on meta"):
        conv2d_weight_grad(x.to("meta"), grad, algorithm="winograd4")
    with pytest.raises(ValueError, match="^x: 1x1 pixels are too few"):
        conv2d_weight_grad(x[..., :1, :1], grad, 0, algorithm="winograd4")
    with pytest.raises(ValueError, match="^algorithm: got the code 0"):
        torch.ops.edm_fast.conv2d_weight_grad(x, grad, 1, 0)
