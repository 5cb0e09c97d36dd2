"""Augmentation of images by given parameters: the equations in every backend, any size, channels and layout."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tolerance import assert_as_exact_as_eager, assert_same_bits

from edm_fast.ops import backends
from edm_fast.ops.augment import augment
from edm_fast.reference.augment import SYM6, AugmentPipe
from edm_fast.reference.augment import augment as reference

SMALL = [(2, 3, 9, 9), (2, 1, 5, 8), (1, 5, 4, 6), (4, 3, 1, 1), (2, 2, 3, 2), (4, 1, 1, 7)]
LARGE = [(3, 3, 32, 32), (2, 3, 17, 33), (1, 6, 16, 16), (40, 1, 6, 6)]
# With the second, images are magnified and shrunk up to some hundred times, and positions lie far outside.
SPREADS = [{}, {"scale_std": 3.0, "aniso_std": 1.0, "translate_frac_std": 2.0}]


def shapes(backend):
    return SMALL if backend == "simt" else SMALL + LARGE


def images(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters(shape, **options):
    """Of everything that such images can have, in three quarters of them."""
    samples, channels, height, width = shape
    names = ["xflip", "yflip", "translate_int", "scale", "rotate_frac", "aniso", "translate_frac"]
    names += ["rotate_int"] if height == width else []
    names += ["brightness", "contrast", "lumaflip", "hue", "saturation"] if channels in (1, 3) else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return AugmentPipe(p=0.75, **dict.fromkeys(names, 1), **options).draw(samples, height, width)[:3]


def on(device, tensors):
    return [None if tensor is None else tensor.to(device) for tensor in tensors]


def identity(samples):
    return torch.eye(2, 3).repeat(samples, 1, 1)


def rotation(theta, samples=1):
    cosine, sine = math.cos(theta), math.sin(theta)
    return torch.tensor([[cosine, -sine, 0], [sine, cosine, 0]]).repeat(samples, 1, 1)


def test_the_taps_are_orthogonal_to_their_shifts_by_two():
    h = torch.tensor(SYM6, dtype=torch.float64)
    assert float(h.sum()) == pytest.approx(math.sqrt(2))
    for shift in range(0, 12, 2):
        assert float(h[shift:] @ h[: 12 - shift]) == pytest.approx(float(shift == 0), abs=1e-12)


def test_the_reference_is_the_equation():
    """Written out on one row of pixels, with the reflection, and with a position that is beyond it."""
    width, scale, shift = 6, 1.75, 0.4
    x = images((1, 1, 1, width)).double()
    geometry = torch.tensor([[[scale, 0, shift], [0, 1, 0]]], dtype=torch.float64)
    pixels = {i: float(x[0, 0, 0, min(i % 10, 10 - i % 10)]) for i in range(1 - width, 2 * width - 1)}

    def tap(k):
        return SYM6[k] if 0 <= k < 12 else 0.0

    def u(j):
        inside = 2 * (1 - width) <= j <= 2 * (2 * width - 2) + 1
        return sum(tap(j - 2 * i + 5) * value for i, value in pixels.items()) if inside else 0.0

    def v(j):
        position = scale * (j - (width - 1)) + 2 * shift + width - 1
        below = math.floor(position)
        return (below + 1 - position) * u(below) + (position - below) * u(below + 1)

    # Along y there is one pixel and no reflection of it: element 0 has the tap 5 of it, and element 1 the tap 6.
    down = SYM6[5] * SYM6[5] + SYM6[6] * SYM6[6]
    expected = [down * sum(SYM6[k] * v(2 * i + k - 5) for k in range(12)) for i in range(width)]
    assert reference(x, geometry=geometry)[0, 0, 0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("spread", SPREADS, ids=["usual", "far"])
@pytest.mark.parametrize("kinds", ["blit", "geometry", "colour", "blit geometry colour"])
def test_it_is_as_exact_as_eager(backend, device, guards, kinds, spread):
    for shape in shapes(backend):
        x = images(shape)
        drawn = parameters(shape, **spread)
        chosen = [drawn[i] if kind in kinds else None for i, kind in enumerate(("blit", "geometry", "colour"))]
        ours = augment(x.to(device), *on(device, chosen), backend=backend)
        exact = reference(x.double(), *chosen)
        assert_as_exact_as_eager(ours, reference(x, *chosen), exact, what=f"{shape} {kinds}")


def test_every_instruction_set(isa, guards):
    for name, spread in itertools.product(isa.available_isas(), SPREADS):
        isa.use_isa(name)
        for shape in SMALL + LARGE:
            x, drawn = images(shape), parameters(shape, **spread)
            ours, exact = augment(x, *drawn, backend="cpu"), reference(x.double(), *drawn)
            assert_as_exact_as_eager(ours, reference(x, *drawn), exact, what=f"{name} {shape}")


def test_moves_of_pixels_are_exact(backend, device):
    x = images((4, 2, 5, 5))
    blit = torch.tensor([[1, 0, 0, 2, -1], [0, 1, 1, -7, 30], [1, 1, 1, 0, 0], [0, 0, 0, 123456789, -123456789]])
    moved = augment(x.to(device), blit.to(device), backend=backend)
    assert_same_bits(moved, reference(x, blit))


def test_colours_are_a_product_and_grey_is_the_mean_of_its_rows(backend, device):
    matrix = torch.tensor([[[1.0, 2.0, 4.0, 8.0], [0.5, 0.25, 16.0, 1.0], [0.0, -2.0, 32.0, -6.0]]], device=device)
    pixel = torch.tensor([1.0, 2.0, 0.5], device=device)[None, :, None, None]
    assert augment(pixel, colour=matrix, backend=backend).flatten().tolist() == [15.0, 10.0, 6.0]
    grey = augment(torch.full([1, 1, 1, 1], 2.0, device=device), colour=matrix, backend=backend)
    assert float(grey) == pytest.approx((2 * (7 + 16.75 + 30) + 8 + 1 - 6) / 3)


def test_a_geometry_that_changes_nothing_gives_the_images_back(backend, device):
    x = images((2, 3, 4, 5)).to(device)
    out = augment(x, geometry=identity(2).to(device), backend=backend)
    if backend == "reference":
        assert_as_exact_as_eager(out, out, x.double(), what="filters that cancel")
    else:
        assert_same_bits(out, x)


def test_images_too_small_for_the_filters_to_cancel_go_through_them(backend, device):
    x = images((1, 1, 3, 3))
    out = augment(x.to(device), geometry=identity(1).to(device), backend=backend)
    assert not torch.allclose(out.cpu(), x)
    assert_as_exact_as_eager(out, reference(x, geometry=identity(1)), reference(x.double(), geometry=identity(1)))


def test_a_sample_does_not_depend_on_its_batch_or_threads(backend, device):
    shape = (5, 3, 9, 9)
    x, drawn = images(shape).to(device), on(device, parameters(shape))
    exact = reference(x.cpu().double(), *on("cpu", drawn))
    whole = augment(x, *drawn, backend=backend)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            parts = [
                augment(x[part], *(tensor[part] for tensor in drawn), backend=backend)
                for part in (slice(0, 1), slice(1, 4), slice(4, 5))
            ]
            if backend == "reference":
                assert_as_exact_as_eager(torch.cat(parts), whole, exact)
            else:
                assert_same_bits(torch.cat(parts), whole)
    finally:
        torch.set_num_threads(threads)


def test_layouts_do_not_matter_and_are_kept(backend, device):
    shape = (2, 3, 6, 6)
    x, drawn = images(shape).to(device), on(device, parameters(shape))
    expected = augment(x, *drawn, backend=backend)
    assert expected.is_contiguous()
    wide = torch.zeros([2, 5, 6, 6], device=device)
    wide[:, 1:4] = x
    last = x.contiguous(memory_format=torch.channels_last)
    assert augment(last, *drawn, backend=backend).is_contiguous(memory_format=torch.channels_last)
    exact = reference(x.cpu().double(), *on("cpu", drawn))
    for variant in (last, wide[:, 1:4], x.mT.contiguous().mT):
        out = augment(variant, *drawn, backend=backend)
        if backend == "reference":
            assert_as_exact_as_eager(out, expected, exact)
        else:
            assert_same_bits(out, expected)
    columns = [tensor.mT.contiguous().mT if tensor.dim() == 3 else tensor.long() for tensor in drawn]
    assert_same_bits(augment(x, *columns, backend=backend), expected)


def test_nan_stays_in_its_sample(backend, device):
    x = images((3, 1, 8, 8))
    x[1, 0, 3, 4] = torch.nan
    out = augment(x.to(device), geometry=rotation(0.5, 3).to(device), backend=backend)
    assert out[1].isnan().any()
    assert out[[0, 2]].isfinite().all()


def test_a_position_that_is_no_number_reads_no_memory(backend, device, guards):
    geometry = rotation(0.5, 3)
    geometry[0, 0, 0], geometry[1, 1, 2], geometry[2] = torch.nan, torch.inf, 1e38
    assert augment(images((3, 1, 8, 8)).to(device), geometry=geometry.to(device), backend=backend).shape == (3, 1, 8, 8)


def test_no_samples(backend, device):
    x, drawn = images((0, 3, 4, 4)).to(device), on(device, parameters((0, 3, 4, 4)))
    assert augment(x, *drawn, backend=backend).shape == x.shape


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        ({"images": torch.zeros(3, 4, 4)}, ValueError, "images"),
        ({"images": torch.zeros(2, 3, 0, 4)}, ValueError, "images"),
        ({"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, TypeError, "images"),
        ({"images": torch.zeros(2, 3, 4, 4, dtype=torch.float16)}, TypeError, "images"),
        ({"images": torch.zeros(2, 3, 4, 4, requires_grad=True)}, ValueError, "images"),
        ({"images": torch.zeros(2, 4, 4, 4), "colour": torch.zeros(2, 3, 4)}, ValueError, "colour"),
        ({"blit": torch.zeros(2, 4)}, ValueError, "blit"),
        ({"blit": torch.zeros(2, 5, device="meta")}, ValueError, "blit"),
        ({"geometry": torch.zeros(1, 2, 3)}, ValueError, "geometry"),
        ({"geometry": torch.zeros(2, 3, 3)}, ValueError, "geometry"),
        ({"colour": torch.zeros(2, 4, 4)}, ValueError, "colour"),
        ({"colour": torch.zeros(2, 4, 4), "backend": "reference"}, ValueError, "colour"),
        ({"backend": "tpu"}, ValueError, "backend"),
    ],
)
def test_bad_arguments_are_named(change, error, name):
    with pytest.raises(error, match=f"^{name}:"):
        augment(**{"images": torch.zeros(2, 3, 4, 4), **change})


def test_float64_runs_on_the_reference_with_one_warning(monkeypatch, recwarn):
    monkeypatch.setattr(backends, "_warned", set())
    x = images((1, 2, 4, 4)).double()
    for _ in range(2):
        assert_same_bits(augment(x, geometry=rotation(1.0)), reference(x, geometry=rotation(1.0)))
    [warning] = recwarn
    assert "augment has no kernel for torch.float64" in str(warning.message)


def test_the_torch_operator_passes_opcheck_and_checks():
    shape = (2, 3, 4, 4)
    x, drawn, out = images(shape), parameters(shape), torch.zeros(shape)
    operator = torch.ops.edm_fast.augment_
    torch.library.opcheck(operator.default, (x, *drawn, out))
    with pytest.raises(TypeError, match="^blit: dtype"):
        operator(x, drawn[0].long(), None, None, out)
    with pytest.raises(ValueError, match="^geometry: strides"):
        operator(x, None, drawn[1].mT.contiguous().mT, None, out)
    with pytest.raises(ValueError, match="^out: shape"):
        operator(x, *drawn, out[:1])


def test_it_compiles_without_graph_breaks():
    shape = (2, 3, 6, 6)
    x, drawn = images(shape), parameters(shape)

    def step(x):
        return augment(x, *drawn).sin()

    assert_same_bits(torch.compile(step, fullgraph=True, backend="aot_eager")(x), step(x))
