"""The augmentation pipe: what is drawn and with which labels, moves and colours by hand, and geometry by its looks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tolerance import BY_HAND, MAGNIFIED_WAVE, TURNED_WAVE, assert_as_exact_as_eager, assert_same_bits

from edm_fast.reference.augment import AugmentPipe as ReferencePipe
from edm_fast.training import AugmentPipe

OPTIONS = {
    "xflip": 1,
    "yflip": 1,
    "rotate_int": 2,
    "translate_int": 2,
    "scale": 1,
    "rotate_frac": 2,
    "aniso": 2,
    "translate_frac": 2,
    "brightness": 1,
    "contrast": 1,
    "lumaflip": 1,
    "hue": 2,
    "saturation": 1,
}
PRESET = {"p": 0.12, "xflip": 1e8, "yflip": 1, "scale": 1, "rotate_frac": 1, "aniso": 1, "translate_frac": 1}
PIPES = [ReferencePipe, AugmentPipe]
# [[0 … W − 1], [10 … ]] and so on, so that a pixel's value says where it was.
NUMBERED = (10 * torch.arange(4.0)[:, None] + torch.arange(4.0))[None, None]


@pytest.fixture(params=PIPES, ids=["reference", "fused"])
def pipe_class(request):
    return request.param


def batch(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn(pipe, samples, height=16, width=16, seed=0):
    torch.manual_seed(seed)
    return pipe.draw(samples, height, width)


def column(name, index=0, samples=20_000, p=1.0, **options):
    """A column of the labels of a pipe with one option."""
    return drawn(ReferencePipe(p=p, **{name: 1}, **options), samples).labels[:, index].double()


def assert_mean(values, expected):
    """Within five standard errors."""
    assert abs(float(values.mean() - expected)) < 5 * float(values.std()) / math.sqrt(len(values))


@pytest.mark.parametrize("options", [dict.fromkeys(OPTIONS, 0.7), PRESET], ids=["all", "preset"])
@pytest.mark.parametrize("shape", [(6, 3, 12, 12), (3, 1, 32, 32)])
def test_the_fused_pipe_is_as_exact_as_the_reference(shape, options):
    pipe, images = AugmentPipe(**options), batch(shape)
    torch.manual_seed(3)
    ours, labels = pipe(images)
    torch.manual_seed(3)
    eager, eager_labels = ReferencePipe(**options)(images)
    torch.manual_seed(3)
    exact, _ = ReferencePipe(**options)(images.double())
    assert_as_exact_as_eager(ours, eager, exact)
    assert_same_bits(labels, eager_labels)


def test_images_need_not_be_square():
    options = {**PRESET, "p": 0.9, "translate_int": 1, "hue": 1}
    pipe, images = AugmentPipe(**options), batch((4, 3, 10, 17))
    parameters = drawn(pipe, 4, 10, 17)
    reference = ReferencePipe(**options)
    exact = reference.apply(images.double(), parameters)
    assert_as_exact_as_eager(pipe.apply(images, parameters), reference.apply(images, parameters), exact)


@pytest.mark.parametrize(
    ("name", "applied"),
    [("xflip", lambda image: image.flip(3)), ("yflip", lambda image: image.flip(2))],
)
def test_flips(pipe_class, name, applied):
    images = NUMBERED.repeat(20, 1, 1, 1)
    torch.manual_seed(0)
    out, labels = pipe_class(**{name: 1})(images)
    assert set(labels[:, 0].tolist()) == {0.0, 1.0}
    for image, w in zip(out, labels[:, 0].tolist(), strict=True):
        assert_same_bits(image[None], applied(NUMBERED) if w else NUMBERED)


def test_quarter_turns_and_their_mirrors(pipe_class):
    torch.manual_seed(0)
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    out, labels = pipe_class(rotate_int=1)(image.repeat(20, 1, 1, 1))
    expected = {
        (0, 0): [[1, 2], [3, 4]],
        (1, 0): [[2, 4], [1, 3]],
        (1, 1): [[4, 3], [2, 1]],
        (0, 1): [[3, 1], [4, 2]],
    }
    assert {tuple(row) for row in labels.int().tolist()} == set(expected)
    for image, row in zip(out, labels.int().tolist(), strict=True):
        assert image[0].tolist() == expected[tuple(row)]


def test_whole_shifts_go_on_by_reflection(pipe_class):
    torch.manual_seed(1)
    out, labels = pipe_class(translate_int=1, translate_int_max=0.75)(NUMBERED.repeat(30, 1, 1, 1))
    shifts = (labels * 3).round().int().tolist()
    assert {shift for pair in shifts for shift in pair} >= {-2, -1, 0, 1, 2}

    def reflect(i):
        return min(i % 6, 6 - i % 6)

    for image, (right, up) in zip(out, shifts, strict=True):
        expected = [[10.0 * reflect(y + up) + reflect(x - right) for x in range(4)] for y in range(4)]
        assert image[0].tolist() == expected
    assert_same_bits(labels, torch.tensor(shifts) / 3)


def test_flips_come_before_turns_and_these_before_shifts(pipe_class):
    options = {"xflip": 1, "yflip": 1, "rotate_int": 1, "translate_int": 1, "translate_int_max": 0.5}
    torch.manual_seed(2)
    images = batch((30, 1, 4, 4))
    out, labels = pipe_class(**options)(images)
    for image, moved, row in zip(images, out, labels.tolist(), strict=True):
        x_flip, y_flip, first, second, right, up = row
        expected = image.flip(2) if x_flip else image
        expected = expected.flip(1) if y_flip else expected
        expected = expected.flip(2) if first else expected
        expected = expected.flip(1) if second else expected
        expected = expected.mT if first != second else expected
        columns = [abs(x - round(2 * right)) for x in range(4)]
        rows = [abs(y + round(2 * up)) for y in range(4)]
        columns, rows = ([min(i, 6 - i) for i in indices] for indices in (columns, rows))
        assert_same_bits(moved, expected[:, rows][:, :, columns])


RED = [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"brightness": 1}, lambda w: [1 + 0.2 * w, 0.2 * w, 0.2 * w]),
        ({"contrast": 1}, lambda w: [2 ** (0.5 * w), 0, 0]),
        ({"lumaflip": 1}, lambda w: [1 - 2 / 3 * w, -2 / 3 * w, -2 / 3 * w]),
        ({"saturation": 1}, lambda w: [1 / 3 + 2 / 3 * 2**w, (1 - 2**w) / 3, (1 - 2**w) / 3]),
        ({"brightness": 1, "brightness_std": 3}, lambda w: [1 + 3 * w, 3 * w, 3 * w]),
    ],
)
def test_colours_by_hand(pipe_class, options, expected):
    torch.manual_seed(0)
    out, labels = pipe_class(**options)(torch.tensor(RED)[:, None, None].repeat(8, 1, 1, 2))
    for image, w in zip(out, labels[:, 0].tolist(), strict=True):
        assert image[:, 0, 1].tolist() == pytest.approx(expected(w), abs=BY_HAND)


def test_hue_turns_colours_about_grey(pipe_class):
    torch.manual_seed(0)
    out, labels = pipe_class(hue=1)(torch.tensor(RED)[:, None, None].repeat(8, 1, 1, 1))
    for image, (cosine, sine) in zip(out[:, :, 0, 0].tolist(), labels.tolist(), strict=True):
        theta = math.atan2(sine, cosine + 1)
        # Red, green and blue lie a third of a turn apart.
        expected = [(1 + 2 * math.cos(theta - k * 2 * math.pi / 3)) / 3 for k in range(3)]
        assert image == pytest.approx(expected, abs=BY_HAND)


def test_each_colour_change_acts_on_the_result_of_the_last(pipe_class):
    torch.manual_seed(0)
    out, labels = pipe_class(brightness=1, contrast=1, lumaflip=1, saturation=1)(
        torch.tensor(RED)[:, None, None].repeat(8, 1, 1, 1)
    )
    for image, (bright, contrast, flip, saturation) in zip(out[:, :, 0, 0].tolist(), labels.tolist(), strict=True):
        values = [2 ** (0.5 * contrast) * (value + 0.2 * bright) for value in RED]
        luma = sum(values) / 3
        values = [value - 2 * flip * luma for value in values]
        luma -= 2 * flip * luma
        assert image == pytest.approx([luma + (value - luma) * 2**saturation for value in values], abs=BY_HAND)


def test_grey_images_get_the_mean_of_the_channels(pipe_class):
    torch.manual_seed(0)
    options = {"brightness": 1, "contrast": 1, "lumaflip": 1, "hue": 1, "saturation": 1}
    out, labels = pipe_class(**options)(torch.full([8, 1, 1, 1], 0.5))
    for value, row in zip(out.flatten().tolist(), labels.tolist(), strict=True):
        bright, contrast, flip = row[:3]
        assert value == pytest.approx(2 ** (0.5 * contrast) * (0.5 + 0.2 * bright) * (1 - 2 * flip), abs=BY_HAND)


def test_labels_stand_in_the_order_of_the_options():
    """Each column is what the parameters say, in a pipe that has them all."""
    pipe = ReferencePipe(p=0.5, **OPTIONS)
    assert drawn(pipe, 4).labels.shape == (4, 19)
    blit, geometry, colour, labels = drawn(pipe, 200)
    columns = dict(enumerate(labels.double().unbind(1)))
    assert blit.dtype == torch.int32
    first = ((blit[:, 0] != 0) != (columns[0] != 0)).double()
    second = ((blit[:, 1] != 0) != (columns[1] != 0)).double()
    assert_same_bits(columns[2], first)
    assert_same_bits(columns[3], second)
    assert_same_bits(blit[:, 2] != 0, first != second)
    assert_same_bits(labels[:, 4:6], blit[:, 3:] / 2)
    scale, theta = columns[6], torch.atan2(columns[8], columns[7] + 1)
    linear = geometry[:, :, :2].double()
    torch.testing.assert_close(torch.linalg.det(linear), 2 ** (-0.4 * scale), rtol=BY_HAND, atol=0)
    stretch, direction = columns[9].hypot(columns[10]), torch.atan2(columns[10], columns[9])
    along = torch.stack([direction.cos(), -direction.sin()], dim=1)[:, :, None]
    turn = torch.stack([theta.cos(), -theta.sin(), theta.sin(), theta.cos()], dim=1).unflatten(1, (2, 2))
    # Labels of w and r are those of −w and r + π, so the sign of w is open: it is the better of both here.
    either = [2 ** (-0.2 * (scale + w))[:, None, None] * (turn @ along) for w in (stretch, -stretch)]
    errors = torch.stack([(linear @ along - expected).abs().amax([1, 2]) for expected in either])
    assert errors.amin(0).max() < BY_HAND
    shift = torch.stack([columns[11], columns[12]], dim=1)[:, :, None] * 2
    torch.testing.assert_close(geometry[:, :, 2:].double(), -linear @ shift, rtol=0, atol=BY_HAND)
    grey = colour.double().sum(1) / 3
    flip = 1 - 2 * columns[15]
    torch.testing.assert_close(grey[:, 3], flip * 2 ** (0.5 * columns[14]) * 0.2 * columns[13], rtol=0, atol=BY_HAND)
    torch.testing.assert_close(grey[:, :3].sum(1), flip * 2 ** (0.5 * columns[14]), rtol=0, atol=BY_HAND)
    spread = torch.linalg.det(colour[:, :, :3].double()).abs().log2()
    torch.testing.assert_close(spread, 1.5 * columns[14] + 2 * columns[18], rtol=0, atol=10 * BY_HAND)
    hue = torch.linalg.matrix_norm(colour[:, :, :3] - colour[:, :, :3].mT) > 1e-4
    assert_same_bits(hue, columns[17].abs() > 1e-4)


@pytest.mark.parametrize("name", ["scale", "translate_frac", "brightness", "contrast", "saturation"])
def test_normal_parameters_have_their_moments_and_probability(name):
    w = column(name, p=0.3)
    assert_mean((w != 0).double(), 0.3)
    present = w[w != 0]
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert_mean(present**power, moment)


@pytest.mark.parametrize(("name", "values"), [("xflip", 2), ("yflip", 2), ("lumaflip", 2)])
def test_coins_are_fair_and_have_their_probability(name, values):
    assert_mean(column(name, p=0.4), 0.2)
    assert_mean(column(name, p=1e8), 0.5)


def test_each_quarter_turn_is_as_likely():
    first, second = column("rotate_int", 0), column("rotate_int", 1)
    for a, b in itertools.product((0, 1), (0, 1)):
        assert_mean(((first == a) & (second == b)).double(), 0.25)


@pytest.mark.parametrize(("name", "largest"), [("rotate_frac", "rotate_frac_max"), ("hue", "hue_max")])
def test_angles_are_uniform_within_their_largest(name, largest):
    parts = [column(name, i, p=0.5, **{largest: 0.25}) for i in (0, 1)]
    theta = torch.atan2(parts[1], parts[0] + 1)
    assert_mean((theta != 0).double(), 0.5)
    present = theta[theta != 0] / (0.25 * math.pi)
    assert present.abs().max() <= 1 + BY_HAND
    for power, moment in ((1, 0.0), (2, 1 / 3), (4, 1 / 5)):
        assert_mean(present**power, moment)


def test_whole_shifts_are_uniform_and_relative_to_the_largest():
    labels = [column("translate_int", i, p=0.5, translate_int_max=0.5) for i in (0, 1)]
    for values in labels:
        assert_same_bits(values, (values * 8).round() / 8)
        assert values.abs().max() == 1
        # A shift of 0 is drawn once in 16, and the ends half as often as the others.
        assert_mean((values == 0).double(), 0.5 + 0.5 / 16)
        assert_mean((values == 1).double(), 0.5 / 32)
    assert_mean(((labels[0] == 0) & (labels[1] == 0)).double(), 0.5 + 0.5 / 256)


def test_anisotropy_has_a_direction_with_its_own_probability():
    x, y = (column("aniso", i, p=0.5, aniso_rotate_prob=0.25) for i in (0, 1))
    stretched = (x != 0) | (y != 0)
    assert_mean(stretched.double(), 0.5)
    assert_mean((y[stretched] != 0).double(), 0.25)
    assert_mean((x**2 + y**2)[stretched], 1.0)
    turned = y[y != 0] ** 2
    assert_mean(turned, 0.5)


def test_options_are_drawn_apart():
    columns = drawn(ReferencePipe(**dict.fromkeys(OPTIONS, 0.5)), 20_000).labels.double()
    correlation = torch.corrcoef(columns.mT) - torch.eye(19, dtype=torch.float64)
    # The two columns of rotate_int have their gate in common; those of the other options have it too, but no sign.
    correlation[2, 3] = correlation[3, 2] = 0
    assert correlation.abs().max() < 5 / math.sqrt(20_000)


def test_p_of_zero_gives_the_images_back_and_zeros(pipe_class):
    images = batch((4, 3, 16, 16))
    out, labels = pipe_class(**{**OPTIONS, "p": 0})(images)
    assert_same_bits(labels, torch.zeros(4, 19))
    if pipe_class is AugmentPipe:
        assert_same_bits(out, images)
    assert_as_exact_as_eager(out, out, images.double())


def test_no_options_give_the_images_back_and_no_columns(pipe_class):
    images = batch((4, 5, 3, 7))
    out, labels = pipe_class()(images)
    assert_same_bits(out, images)
    assert labels.shape == (4, 0)
    assert labels.dtype == torch.float32


def test_the_presets_have_nine_columns():
    assert drawn(AugmentPipe(**PRESET), 2).labels.shape == (2, 9)


def test_a_seed_decides_everything(pipe_class):
    pipe, images = pipe_class(**PRESET), batch((4, 3, 8, 8))
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(pipe(images))
    for first, again, other in zip(*results, strict=True):
        assert_same_bits(first, again)
        assert not torch.equal(first, other)


def test_the_memory_format_is_kept(pipe_class):
    images = batch((4, 3, 8, 8)).contiguous(memory_format=torch.channels_last)
    assert pipe_class(**PRESET)(images)[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("options", "images", "error", "name"),
    [
        ({"p": -0.1}, None, ValueError, "p"),
        ({"p": math.nan}, None, ValueError, "p"),
        ({"xflip": math.inf}, None, ValueError, "xflip"),
        ({"scale_std": -1}, None, ValueError, "scale_std"),
        ({"hue": "1"}, None, TypeError, "hue"),
        ({"yflip": True}, None, TypeError, "yflip"),
        ({"translate_int_max": 0}, None, ValueError, "translate_int_max"),
        ({"aniso_rotate_prob": 1.5}, None, ValueError, "aniso_rotate_prob"),
        ({"hue": 1}, torch.zeros(2, 4, 3, 3), ValueError, "images"),
        ({"rotate_int": 1}, torch.zeros(2, 3, 3, 4), ValueError, "images"),
        ({}, torch.zeros(2, 3, 3, 3, dtype=torch.uint8), TypeError, "images"),
        ({}, torch.zeros(2, 3, 3, 3, dtype=torch.float16), TypeError, "images"),
        ({}, torch.zeros(3, 3, 3), ValueError, "images"),
        ({}, torch.zeros(2, 3, 0, 3), ValueError, "images"),
    ],
)
def test_bad_arguments_are_named(pipe_class, options, images, error, name):
    with pytest.raises(error, match=f"^{name}:"):
        pipe_class(**options)(images)


def wave(x, y):
    """Smooth, and without symmetries."""
    return torch.cos(0.3 * x + 0.2 * y + 0.3) + 0.5 * torch.sin(0.15 * x - 0.35 * y)


def grid(extent=32):
    steps = torch.arange(extent, dtype=torch.float64) - (extent - 1) / 2
    return steps.expand(extent, extent), steps[:, None].expand(extent, extent)


def with_label(pipe, wanted, samples=4000):
    """The geometry of the drawn sample whose label is nearest to the wanted one, and this label."""
    parameters = drawn(pipe, samples, 32, 32)
    index = int((parameters.labels - torch.tensor(wanted)).norm(dim=1).argmin())
    return parameters.geometry[index : index + 1], parameters.labels[index].double()


@pytest.mark.parametrize("theta", [math.pi / 2, math.pi, 1.0, -2.0])
def test_a_smooth_image_turns_about_its_centre(pipe_class, theta):
    x, y = grid()
    pipe = pipe_class(rotate_frac=1)
    geometry, (cosine, sine) = with_label(pipe, [math.cos(theta) - 1, math.sin(theta)])
    cosine = cosine + 1
    out = pipe.apply(wave(x, y)[None, None].float(), drawn(pipe, 1)._replace(geometry=geometry))
    expected = wave(cosine * x - sine * y, sine * x + cosine * y)
    # Away from the reflection.
    assert (out[0, 0] - expected)[10:22, 10:22].abs().max() < TURNED_WAVE


def test_a_smooth_image_is_magnified_about_its_centre(pipe_class):
    x, y = grid()
    pipe = pipe_class(scale=1, scale_std=1.0)
    geometry, (w,) = with_label(pipe, [1.0])
    out = pipe.apply(wave(x, y)[None, None].float(), drawn(pipe, 1)._replace(geometry=geometry))
    assert (out[0, 0] - wave(x / 2**w, y / 2**w))[10:22, 10:22].abs().max() < MAGNIFIED_WAVE


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -2), (5, 4)])
def test_a_shift_by_whole_pixels_moves_them(pipe_class, right, down):
    """The filters cancel then, whatever the image, and reflection fills the rest."""
    pipe, images = pipe_class(translate_frac=1), batch((1, 2, 16, 16))
    geometry = torch.tensor([[[1.0, 0.0, -right], [0.0, 1.0, -down]]])
    out = pipe.apply(images, drawn(pipe, 1)._replace(geometry=geometry))
    columns = torch.tensor([abs(i - right) if i - right < 16 else 30 - (i - right) for i in range(16)])
    rows = torch.tensor([abs(i - down) if i - down < 16 else 30 - (i - down) for i in range(16)])
    torch.testing.assert_close(out, images[:, :, rows][:, :, :, columns], rtol=0, atol=BY_HAND)


def test_fractional_shifts_are_by_parts_of_the_width_and_the_height():
    _, geometry, _, labels = drawn(ReferencePipe(translate_frac=1), 8, height=8, width=24)
    torch.testing.assert_close(geometry[:, :, 2], -labels * torch.tensor([3.0, 1.0]))
