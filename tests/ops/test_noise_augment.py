"""The noisy input of training: its equation in every backend, the distributions of σ, and seeds as the only source."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from rgb_layouts import EXTENTS, PLACES, interleaved
from scipy import stats
from tolerance import assert_as_exact_as_eager, assert_same_bits

from edm_fast import randn
from edm_fast.ops.noise_augment import LevelRule, noise_augment
from edm_fast.ops.randn import DOMAIN_TRAINING
from edm_fast.reference.preconditioning import EDMPrecond, VEPrecond, VPPrecond

SHAPES = [(1, 1, 1, 1), (3, 3, 5, 4), (2, 5, 17, 3), (5, 1, 64), (4, 7)]
EDM = LevelRule("log_normal", -1.2, 1.2, preconditioning="edm", sigma_data=0.5, weight_sigma_data=0.5)
RULES = {
    "edm": EDM,
    "vp": LevelRule("vp", 19.9, 0.1, 1e-5, preconditioning="vp", beta_d=19.9, beta_min=0.1, levels=1000),
    "ve": LevelRule("log_uniform", math.log(0.02), math.log(5000), preconditioning="ve"),
    "uniform": LevelRule("uniform", 0.5, 2.0, preconditioning="edm", sigma_data=1.0, weight_sigma_data=0.25),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
TINY = {"model_type": "SongUNet", "model_channels": 4, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}


def images(shape, device="cpu", dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device, dtype)


def seeds(count, device="cpu"):
    return torch.arange(count, device=device) * 7919 - 3


@pytest.mark.parametrize("name", RULES)
def test_every_backend_gives_the_reference(backend, device, name, guards):
    for shape, dtype in itertools.product(SHAPES, DTYPES):
        formats = [torch.contiguous_format] + [torch.channels_last] * (len(shape) == 4)
        for memory_format in formats:
            options = {"dtype": dtype, "memory_format": memory_format}
            y, keys = images(shape), seeds(shape[0])
            found = noise_augment(y.to(device), RULES[name], keys.to(device), 5, backend=backend, **options)
            expected = noise_augment(y, RULES[name], keys, 5, backend="reference", **options)
            # A unit in the last place between the math libraries of two compilers, at most.
            torch.testing.assert_close(found.rows.cpu(), expected.rows, rtol=2e-7, atol=0)
            if backend != "cuda":
                assert_same_bits(found.net_input, expected.net_input)
            assert found.net_input.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("name", RULES)
def test_the_input_is_the_equation_on_the_librarys_noise(backend, device, name):
    y, keys = images((3, 3, 5, 4)), seeds(3)
    found = noise_augment(y.to(device), RULES[name], keys.to(device), 2, backend=backend)
    sigma = found.sigma.cpu().double().reshape(-1, 1, 1, 1)
    n = randn((3, 5, 4), keys, 2, domain=DOMAIN_TRAINING)

    def input_in(dtype):
        s = sigma.to(dtype)
        c_in = {
            "edm": lambda: 1 / (s**2 + 0.25).sqrt(),
            "uniform": lambda: 1 / (s**2 + 1).sqrt(),
            "vp": lambda: 1 / (s**2 + 1).sqrt(),
            "ve": lambda: torch.ones_like(s),
        }[name]()
        return c_in * (y.to(dtype) + s * n.to(dtype))

    assert_as_exact_as_eager(found.net_input.cpu(), input_in(torch.float32), input_in(torch.float64))


@pytest.mark.parametrize(
    ("rule", "net"),
    [
        ("edm", EDMPrecond(8, 1, sigma_data=0.5, **TINY)),
        ("vp", VPPrecond(8, 1, **TINY)),
        ("ve", VEPrecond(8, 1, **TINY)),
    ],
)
def test_the_numbers_of_a_row_are_the_networks_coefficients(backend, device, rule, net):
    sigma = torch.logspace(-2.5, 2, 40)
    given = RULES[rule]._replace(source="given")
    noise = torch.zeros(40, 1, device=device)
    found = noise_augment(noise, given, sigma=sigma.to(device), noise=noise, backend=backend)
    c_skip, c_out, c_in, _ = net.coefficients(sigma.double())
    weight = (sigma.double() ** 2 + 0.25) / (0.5 * sigma.double()) ** 2 if rule == "edm" else 1 / sigma.double() ** 2
    rows = found.rows.cpu().double()
    exact = {0: sigma.double(), 1: c_in, 3: weight, 4: c_skip - 1, 5: c_skip * sigma, 6: c_out}
    for column, expected in exact.items():
        torch.testing.assert_close(rows[:, column], expected, rtol=1e-7, atol=0)
    # The noise label goes through float32 in the network, VP's with roundings that matter near 0.
    torch.testing.assert_close(rows[:, 2], net.coefficients(sigma).c_noise.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_sigma_has_its_distribution(name):
    rule = RULES[name]
    sigma = noise_augment(torch.zeros(4000, 0), rule, range(4000)).sigma.double().numpy()
    distribution = {
        "edm": stats.lognorm(s=1.2, scale=math.exp(-1.2)),
        "ve": stats.loguniform(0.02, 100),
        "uniform": stats.uniform(0.5, 2.0),
    }
    if name == "vp":
        t = ((0.01 + 2 * 19.9 * torch.from_numpy(sigma).square().log1p()).sqrt() - 0.1) / 19.9
        sigma, distribution["vp"] = t.numpy(), stats.uniform(1e-5, 1 - 1e-5)
    assert stats.kstest(sigma, distribution[name].cdf).pvalue > 1e-4


def test_sigma_and_noise_are_independent_of_each_other_and_of_other_draws():
    z = [noise_augment(torch.zeros(4000, 1), EDM, range(4000), draw) for draw in (0, 1)]
    series = [z[0].sigma.log(), z[1].sigma.log(), randn([1], range(4000), 0, domain=DOMAIN_TRAINING)[:, 0]]
    correlations = torch.corrcoef(torch.stack(series)) - torch.eye(3)
    assert float(correlations.abs().max()) < 5 / math.sqrt(4000)


def test_a_sample_does_not_depend_on_its_batch_or_threads(backend, device):
    y, keys = images((5, 3, 40, 40), device), seeds(5, device)
    whole = noise_augment(y, EDM, keys, backend=backend)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = noise_augment(y, EDM, keys, backend=backend)
    finally:
        torch.set_num_threads(threads)
    assert_same_bits(again.net_input, whole.net_input)
    for i in range(5):
        alone = noise_augment(y[i : i + 1], EDM, keys[i : i + 1], backend=backend)
        assert_same_bits(alone.net_input, whole.net_input[i : i + 1])
        assert_same_bits(alone.rows, whole.rows[i : i + 1])


def test_every_instruction_set_gives_the_same_bits(isa):
    y, keys = images((3, 3, 9, 7)), seeds(3)
    results = []
    for name in isa.available_isas():
        isa.use_isa(name)
        results.append(noise_augment(y, EDM, keys))
    for result in results[1:]:
        assert_same_bits(result.net_input, results[0].net_input)
        assert_same_bits(result.rows, results[0].rows)


def test_layouts_and_dtypes_of_images_do_not_matter(backend, device):
    y, keys = images((3, 4, 6, 5), device, torch.bfloat16), seeds(3, device)
    expected = noise_augment(y.float(), EDM, keys, backend=backend)
    for same in (y, y.contiguous(memory_format=torch.channels_last), y.double(), y.transpose(2, 3).contiguous().mT):
        assert_same_bits(noise_augment(same, EDM, keys, backend=backend).net_input, expected.net_input)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("extents", EXTENTS, ids=str)
def test_images_may_lie_pixel_by_pixel(backend, device, extents, dtype):
    y, keys = images((3, 3, *extents), device), seeds(3, device)
    noise = randn((3, *extents), keys, 2, domain=DOMAIN_TRAINING, device=device)
    expected = noise_augment(y, EDM, keys, 2, dtype=dtype, backend=backend).net_input
    options = {"dtype": dtype, "memory_format": torch.channels_last, "backend": backend}
    for place, given in itertools.product(PLACES, (None, noise)):
        found = noise_augment(interleaved(y, *place), EDM, keys, 2, noise=given, **options).net_input
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert_same_bits(found.contiguous(), expected)


def test_given_noise_takes_the_place_of_drawn_noise(backend, device):
    y, keys = images((3, 3, 5, 4), device), seeds(3, device)
    drawn = noise_augment(y, EDM, keys, 9, backend=backend)
    noise = randn((3, 5, 4), keys, 9, domain=DOMAIN_TRAINING, device=device)
    given = noise_augment(y, EDM._replace(source="given"), sigma=drawn.sigma, noise=noise, backend=backend)
    assert_same_bits(given.net_input, drawn.net_input)
    assert_same_bits(given.rows, drawn.rows)
    rows = noise_augment(y, LevelRule("rows"), rows=drawn.rows, noise=noise, backend=backend)
    assert_same_bits(rows.net_input, drawn.net_input)


def test_nan_stays_in_its_element(backend, device):
    y, keys = images((2, 3, 4, 4), device), seeds(2, device)
    expected = noise_augment(y, EDM, keys, backend=backend).net_input
    y[1, 2, 3, 0] = torch.nan
    found = noise_augment(y, EDM, keys, backend=backend).net_input
    assert found[1, 2, 3, 0].isnan()
    expected[1, 2, 3, 0] = torch.nan
    assert_same_bits(found, expected)


def test_no_samples_and_no_pixels(backend, device):
    assert noise_augment(torch.zeros(0, 3, 4, 4, device=device), EDM, [], backend=backend).rows.shape == (0, 7)
    empty = noise_augment(torch.zeros(2, 3, 0, 4, device=device), EDM, [1, 2], backend=backend)
    assert empty.net_input.numel() == 0
    assert bool(empty.sigma.isfinite().all())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seeds": None}, "seeds"),
        ({"seeds": [1]}, "seeds"),
        ({"seeds": [0.5, 1.0]}, "seeds"),
        ({"draw": -1}, "draw"),
        ({"sigma": torch.ones(2)}, "sigma"),
        ({"rule": EDM._replace(source="given")}, "sigma"),
        ({"rule": EDM._replace(source="given"), "sigma": torch.ones(3)}, "sigma"),
        ({"rule": EDM._replace(source="rows")}, "rows"),
        ({"rule": EDM._replace(source="rows"), "rows": torch.ones(2, 6)}, "rows"),
        ({"rule": EDM._replace(source="normal")}, "source"),
        ({"rule": EDM._replace(preconditioning="eps")}, "preconditioning"),
        ({"noise": torch.zeros(2, 1, 4, 4)}, "noise"),
        ({"noise": torch.zeros(2, 3, 4, 4, dtype=torch.int64)}, "noise"),
        ({"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, "images"),
        ({"images": torch.zeros(2)}, "images"),
        ({"dtype": torch.int32}, "dtype"),
        ({"images": torch.zeros(2, 4), "memory_format": torch.channels_last}, "memory_format"),
        ({"backend": "tpu"}, "backend"),
    ],
)
def test_bad_arguments_are_named(options, named):
    arguments = {"images": torch.zeros(2, 3, 4, 4), "rule": EDM, "seeds": [1, 2], **options}
    with pytest.raises((ValueError, TypeError), match=rf"^{named}"):
        noise_augment(**arguments)


def test_the_torch_operator_passes_opcheck():
    y, keys = torch.randn(2, 3, 4, 4), torch.tensor([1, 2])
    rows, out = torch.empty(2, 7), torch.empty(2, 3, 4, 4)
    arguments = (y, EDM.numbers(), 0, keys, None, None, rows, out)
    torch.library.opcheck(torch.ops.edm_fast.noise_augment_.default, arguments)


def test_it_compiles_without_graph_breaks():
    y, keys = torch.randn(2, 3, 4, 4), torch.tensor([1, 2])
    compiled = torch.compile(lambda y, keys: noise_augment(y, EDM, keys).net_input, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(y, keys), noise_augment(y, EDM, keys).net_input)
