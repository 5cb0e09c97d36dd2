"""Convolutions by matrix tiles (AMX): as exact as the same products in pairs, and the same bits for every split.

The processors that have tiles run these tests; others skip them.
"""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_pairs_within_their_row, assert_same_bits

from edm_fast.ops.conv2d import conv2d
from edm_fast.reference.conv2d import conv2d as reference_conv2d

# samples, in channels, out channels, height, width
SHAPES = [
    (2, 64, 64, 8, 8),
    (1, 32, 1, 4, 4),
    (3, 96, 40, 20, 12),
    (2, 32, 130, 9, 7),
    (1, 160, 66, 6, 33),
    (5, 32, 3, 1, 1),
    (1, 64, 192, 13, 1),
    (1, 32, 16, 2, 600),
    (2, 256, 48, 32, 32),
]


@pytest.fixture(autouse=True)
def tiles(isa):
    if "amx_bf16" not in isa.available_isas():
        pytest.skip("this processor has no matrix tiles")
    isa.use_isa("amx_bf16")


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    tensor = torch.randn(*shape, generator=generator)
    return tensor.bfloat16().contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor


def layer(shape, kernel, padding=None, residual_up=False):
    samples, channels, out_channels, height, width = shape
    padding = kernel // 2 if padding is None else padding
    size = [extent + 2 * padding - kernel + 1 for extent in (height, width)]
    images = {"x": draw(samples, channels, height, width)}
    if not residual_up or not any(extent % 2 for extent in size):
        images["residual"] = draw(samples, out_channels, *(extent // (1 + residual_up) for extent in size), seed=3)
    weight = (draw(out_channels, channels, kernel, kernel, seed=1) * (channels * kernel**2) ** -0.5).float()
    vectors = {"bias": draw(out_channels, seed=4), "channel_bias": draw(samples, out_channels, seed=2)}
    vectors = {name: vector.bfloat16().float() for name, vector in vectors.items()}
    return images, {"weight": weight, **vectors}, {"scale": 0.75, "padding": padding}


def run(images, parameters, options, **more):
    return conv2d(**images, **parameters, **options, algorithm="tiles", pairs=True, **more)


def assert_exact(images, parameters, options, **more):
    exact = reference_conv2d(
        **{k: v.double() for k, v in images.items()},
        **{k: v.double() for k, v in parameters.items()},
        **options,
        **more,
    )
    eager = reference_conv2d(**images, **parameters, **options, **more)
    assert_pairs_within_their_row(run(images, parameters, options, **more), eager, exact, "tiles")


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(shape, kernel):
    assert_exact(*layer(shape, kernel))


@pytest.mark.parametrize(("kernel", "padding"), [(3, 0), (3, 2), (3, 3), (1, 1)])
def test_other_paddings(kernel, padding):
    assert_exact(*layer((2, 32, 24, 8, 6), kernel, padding))


def test_a_residual_of_half_the_size_is_repeated():
    images, parameters, options = layer((2, 32, 24, 8, 12), 3, residual_up=True)
    assert_exact(images, parameters, options, residual_up=True)


@pytest.mark.parametrize("kernel", [1, 3])
def test_two_sources(kernel):
    images, parameters, options = layer((2, 96, 33, 6, 5), kernel)
    x = images.pop("x")
    assert_exact({"x": x[:, :32], "x2": x[:, 32:], **images}, parameters, options)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shape", [(7, 32, 80, 8, 8), (5, 64, 16, 3, 5), (3, 96, 48, 18, 10)], ids=str)
def test_bits_do_not_depend_on_batch_or_threads(shape, kernel):
    images, parameters, options = layer(shape, kernel)
    whole, before = run(images, parameters, options), torch.get_num_threads()

    def part(samples):
        vectors = {**parameters, "channel_bias": parameters["channel_bias"][samples]}
        return run({name: image[samples] for name, image in images.items()}, vectors, options)

    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            assert_same_bits(run(images, parameters, options), whole)
            assert_same_bits(torch.cat([part(slice(i, i + 1)) for i in range(shape[0])]), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kernel", [1, 3])
def test_nan_stays_in_its_sample(kernel):
    images, parameters, options = layer((3, 32, 24, 8, 8), kernel)
    clean = run(images, parameters, options)
    images["x"][1, 3, 2, 2] = torch.nan
    dirty = run(images, parameters, options)
    assert dirty[1].isnan().any()
    assert_same_bits(dirty[[0, 2]], clean[[0, 2]])


def test_an_image_at_an_odd_address():
    images, parameters, options = layer((2, 32, 24, 8, 8), 1)
    memory = torch.empty(2 * 8 * 8 * 32 + 1, dtype=torch.bfloat16)
    shifted = memory[1:].view(2, 8, 8, 32).permute(0, 3, 1, 2).copy_(images["x"])
    assert_same_bits(run({**images, "x": shifted}, parameters, options), run(images, parameters, options))


def test_an_empty_batch():
    out = conv2d(draw(0, 32, 8, 8), torch.zeros(4, 32, 3, 3), algorithm="tiles", pairs=True)
    assert out.shape == (0, 4, 8, 8)


def test_gradients_of_everything():
    images, parameters, options = layer((2, 96, 24, 6, 6), 3)
    x = images.pop("x")
    images = {"x": x[:, :32], "x2": x[:, 32:], **images}
    grad = draw(2, 24, 6, 6, seed=9)
    found = []
    for function, dtype, more in (
        (conv2d, None, {"algorithm": "tiles", "pairs": True}),
        (reference_conv2d, torch.float64, {}),
    ):
        leaves = {k: v.to(dtype or v.dtype).clone().requires_grad_() for k, v in {**images, **parameters}.items()}
        function(**leaves, **options, **more).backward(grad.to(dtype or grad.dtype))
        found.append({k: v.grad for k, v in leaves.items()})
    for name, exact in found[1].items():
        torch.testing.assert_close(found[0][name].double(), exact, rtol=0, atol=0.01 * float(exact.abs().max()))


def test_what_tiles_do_not_take_is_named(isa):
    x, weight = draw(1, 32, 8, 8), torch.zeros(4, 32, 3, 3)
    with pytest.raises(ValueError, match=r"^algorithm: tiles need pairs and channels in 32s; got False and \[32\]"):
        conv2d(x, weight, algorithm="tiles")
    with pytest.raises(ValueError, match=r"^algorithm: tiles need pairs and channels in 32s; got True and \[16\]"):
        conv2d(x[:, :16], weight[:, :16], algorithm="tiles", pairs=True)
    isa.use_isa("avx512_bf16")
    with pytest.raises(ValueError, match="^algorithm: tiles are not among the instructions in use, avx512_bf16"):
        conv2d(x, weight, algorithm="tiles", pairs=True)
