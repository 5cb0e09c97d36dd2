"""The samplers and schedules give what the k-diffusion package gives: values, noise, what callbacks and noise samplers
see. Both start from the same state of torch's global generator.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from peer_k_diffusion import sampling_module
from tolerance import SAMPLER_FLOAT32, SAMPLER_FLOAT64, relative_error

from edm_fast.compat import k_diffusion as ours

LATENTS = torch.randn([2, 2, 4, 4], generator=torch.Generator().manual_seed(0))
CONDITION = torch.tensor([0.5, -0.3]).reshape(2, 1, 1, 1)


@pytest.fixture(scope="module")
def theirs():
    return sampling_module()


def guided(x, sigma, condition, scale):
    """Classifier-free guidance around a smooth model, with σ as a vector."""
    assert sigma.shape == x.shape[:1]
    assert sigma.dtype == x.dtype
    noise = sigma.reshape(-1, 1, 1, 1)

    def denoised(mean):
        return mean + (x - mean) * 0.25 / (0.25 + noise**2) + 0.2 * torch.tanh(x / (1 + noise) + mean)

    free = denoised(torch.zeros_like(condition))
    return free + scale * (denoised(condition) - free)


def extra(dtype):
    return {"condition": CONDITION.to(dtype), "scale": 1.7}


SCHEDULES = {
    "karras": ("get_sigmas_karras", {"n": 9, "sigma_min": 0.02, "sigma_max": 20}),
    "karras, rho 3": ("get_sigmas_karras", {"n": 6, "sigma_min": 0.1, "sigma_max": 10, "rho": 3.0}),
    "exponential": ("get_sigmas_exponential", {"n": 8, "sigma_min": 0.03, "sigma_max": 30}),
    "polyexponential": ("get_sigmas_polyexponential", {"n": 8, "sigma_min": 0.05, "sigma_max": 12, "rho": 1.5}),
    "vp": ("get_sigmas_vp", {"n": 7}),
}

CHURN = {"s_churn": 3, "s_tmin": 0.1, "s_tmax": 15.0, "s_noise": 1.05}
SAMPLERS = {
    "euler": {},
    "heun": {},
    "dpm_2": {},
    "euler, churn": CHURN,
    "heun, churn": CHURN,
    "dpm_2, churn": CHURN,
    "heun, churn beyond its bound": {"s_churn": 50.0},
    "euler_ancestral": {},
    "euler_ancestral, eta": {"eta": 0.6, "s_noise": 1.1},
    "euler_ancestral, no eta": {"eta": 0.0},
    "euler_ancestral, eta above 1": {"eta": 1.4},
    "dpm_2_ancestral": {},
    "dpm_2_ancestral, eta": {"eta": 0.6, "s_noise": 1.1},
    "dpmpp_2s_ancestral": {},
    "dpmpp_2s_ancestral, eta": {"eta": 0.6, "s_noise": 1.1},
    "lms": {},
    "lms, order 1": {"order": 1},
    "lms, order 3": {"order": 3},
    "dpmpp_2m": {},
    "dpmpp_sde": {},
    "dpmpp_sde, eta and r": {"eta": 0.7, "s_noise": 0.9, "r": 0.35},
    "dpmpp_sde, no eta": {"eta": 0.0},
    "dpmpp_2m_sde": {},
    "dpmpp_2m_sde, heun": {"solver_type": "heun", "eta": 0.5, "s_noise": 1.1},
    "dpmpp_2m_sde, no eta": {"eta": 0.0},
    "dpmpp_3m_sde": {},
    "dpmpp_3m_sde, eta": {"eta": 0.4, "s_noise": 1.1},
    "dpmpp_3m_sde, no eta": {"eta": 0.0},
}


# A step from σ to σ/56: in float32 k-diffusion's sigma_down, from a small difference of squares, loses four digits, and
# this sampler magnifies them.
FLOAT32_IS_NOT_ENOUGH = {("dpm_2_ancestral", "vp")}


@pytest.fixture
def float64():
    """k-diffusion's DPM-Solver takes its times in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def sampler(module, name):
    return getattr(module, "sample_" + name.split(",")[0])


def sampled(module, name, sigmas, x=None, **options):
    """A run from a fresh generator; samplers of the SDE draw without a Brownian tree, unless `options` has one."""
    x = LATENTS.to(sigmas.dtype) * sigmas[0] if x is None else x
    if "_sde" in name:
        options = {"noise_sampler": lambda sigma, sigma_next: torch.randn_like(x), **options}
    torch.manual_seed(5)
    return sampler(module, name)(
        guided, x, sigmas, extra_args=extra(x.dtype), disable=True, **SAMPLERS[name], **options
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_agree(theirs, schedule):
    name, options = SCHEDULES[schedule]
    actual, expected = getattr(ours, name)(**options), getattr(theirs, name)(**options)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual[-1] == 0
    assert float((actual[:-1] / expected[:-1] - 1).abs().max()) <= SAMPLER_FLOAT32


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_agree(theirs, name, schedule):
    function, options = SCHEDULES[schedule]
    sigmas = getattr(theirs, function)(**options)
    for levels in (sigmas, sigmas[1:-1]):  # to 0, and between two levels
        for dtype, bound in ((torch.float32, SAMPLER_FLOAT32), (torch.float64, SAMPLER_FLOAT64)):
            if dtype == torch.float32 and (name, schedule) in FLOAT32_IS_NOT_ENOUGH:
                continue
            actual, expected = (sampled(module, name, levels.to(dtype)) for module in (ours, theirs))
            assert actual.dtype == expected.dtype == dtype
            assert relative_error(actual, expected) <= bound


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2", "lms", "dpmpp_2m"])
def test_the_ode_runs_upwards_too(theirs, name):
    sigmas = theirs.get_sigmas_karras(8, 0.05, 20)[:-1].flip(0)
    actual, expected = (sampled(module, name, sigmas, x=CONDITION + 0.1 * LATENTS) for module in (ours, theirs))
    assert relative_error(actual, expected) <= SAMPLER_FLOAT32


@pytest.mark.parametrize("eta", [0.0, 0.8])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 11])
def test_dpm_fast_agrees(theirs, n, eta):
    results = []
    for module in (ours, theirs):
        torch.manual_seed(5)
        arguments = (guided, LATENTS * 20, 0.05, 20.0, n, extra(torch.float32))
        results.append(module.sample_dpm_fast(*arguments, disable=True, eta=eta, s_noise=1.1))
    assert relative_error(*results) <= SAMPLER_FLOAT32


ADAPTIVE = [
    {},
    {"order": 2, "rtol": 0.02},
    {"h_init": 2.0, "atol": 0.001, "rtol": 0.005},
    {"pcoeff": 0.2, "icoeff": 0.6, "dcoeff": 0.1, "accept_safety": 0.9, "h_init": 1.5},
    {"eta": 0.7, "s_noise": 1.1},
    {"order": 2, "eta": 1.0},
]


def adaptive(module, dtype, options):
    torch.manual_seed(5)
    drawn = iter(torch.randn([50, 2, 2, 4, 4], dtype=torch.float32).to(dtype))
    arguments = (guided, LATENTS.to(dtype) * 20, 0.05, 20.0, extra(dtype))
    noise = {"noise_sampler": lambda sigma, sigma_next: next(drawn)}
    return module.sample_dpm_adaptive(*arguments, disable=True, return_info=True, **noise, **options)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("options", ADAPTIVE, ids=str)
def test_dpm_adaptive_agrees(theirs, options):
    (actual, info), (expected, expected_info) = (adaptive(module, torch.float64, options) for module in (ours, theirs))
    assert info == expected_info
    assert relative_error(actual, expected) <= SAMPLER_FLOAT64


@pytest.mark.parametrize("options", ADAPTIVE, ids=str)
def test_dpm_adaptive_in_float32_is_as_near_to_float64(theirs, options):
    """In float32 both choose other steps: where two orders nearly agree, their difference is rounding."""
    exact, info = adaptive(ours, torch.float64, options)
    (actual, own_info), (expected, _) = (adaptive(module, torch.float32, options) for module in (ours, theirs))
    assert own_info == info
    assert relative_error(actual, exact) <= max(SAMPLER_FLOAT32, relative_error(expected, exact))


@pytest.mark.parametrize("name", ["dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_the_default_noise_is_the_same_brownian_tree(theirs, name):
    sigmas = theirs.get_sigmas_karras(5, 0.1, 10)
    actual, expected = (sampled(module, name, sigmas, noise_sampler=None) for module in (ours, theirs))
    assert relative_error(actual, expected) <= SAMPLER_FLOAT32


@pytest.mark.parametrize("seed", [3, [3, 4]])
@pytest.mark.parametrize("transform", [None, lambda sigma: sigma.log().neg()])
def test_brownian_trees_agree(theirs, seed, transform):
    options = {"seed": seed} if transform is None else {"seed": seed, "transform": transform}
    actual, expected = (module.BrownianTreeNoiseSampler(LATENTS, 0.1, 10.0, **options) for module in (ours, theirs))
    for sigma, sigma_next in ((10.0, 4.0), (4.0, 0.5), (0.5, 4.0), (0.5, 0.1)):
        levels = torch.tensor(sigma), torch.tensor(sigma_next)
        assert relative_error(actual(*levels), expected(*levels)) <= SAMPLER_FLOAT32


@pytest.mark.parametrize(
    "name", ["euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde"]
)
def test_a_noise_sampler_is_asked_for_the_same_levels(theirs, name):
    sigmas = theirs.get_sigmas_karras(5, 0.1, 10)
    asked = {}
    for module in (ours, theirs):
        asked[module] = []

        def noise_sampler(sigma, sigma_next, log=asked[module]):
            log.append((sigma, sigma_next))
            return torch.randn_like(LATENTS)

        sampled(module, name, sigmas, noise_sampler=noise_sampler)
    assert len(asked[ours]) == len(asked[theirs]) > 0
    for mine, peer in zip(asked[ours], asked[theirs], strict=True):
        assert [float(level) for level in mine] == [float(level) for level in peer]


@pytest.mark.parametrize("name", [name for name in SAMPLERS if "," not in name] + ["heun, churn"])
def test_callbacks_see_the_same(theirs, name):
    sigmas = theirs.get_sigmas_karras(5, 0.1, 10)
    mine, peers = [], []
    sampled(ours, name, sigmas, callback=mine.append)
    sampled(theirs, name, sigmas, callback=peers.append)
    compare_reports(mine, peers, 5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["fast", "adaptive"])
def test_callbacks_of_dpm_solver_see_the_same(theirs, name):
    mine, peers = [], []
    for module, log in ((ours, mine), (theirs, peers)):
        length = {"n": 7} if name == "fast" else {}
        arguments = {"extra_args": extra(torch.float64), "callback": log.append, "disable": True, **length}
        getattr(module, f"sample_dpm_{name}")(guided, LATENTS.double() * 20, 0.05, 20.0, **arguments)
    compare_reports(mine, peers, len(peers))


def compare_reports(mine, peers, steps):
    assert len(mine) == len(peers) == steps
    for report, expected in zip(mine, peers, strict=True):
        assert set(report) == set(expected)
        for key, value in expected.items():
            if key in ("i", "steps", "nfe", "n_accept", "n_reject"):
                assert report[key] == value
            elif key in ("x", "denoised"):
                assert relative_error(report[key], value) <= SAMPLER_FLOAT32
            else:
                assert torch.is_tensor(report[key]) == torch.is_tensor(value)
                assert float(report[key]) == pytest.approx(float(value), rel=SAMPLER_FLOAT32, abs=SAMPLER_FLOAT32)


def test_signatures_begin_with_theirs(theirs):
    for name in ours.__all__:
        peer = list(inspect.signature(getattr(theirs, name)).parameters.values())
        mine = list(inspect.signature(getattr(ours, name)).parameters.values())
        assert [each.name for each in mine[: len(peer)]] == [each.name for each in peer]
        assert {each.name for each in mine[len(peer) :]} <= {"randn_like", "seeds"}
        for own, expected in zip(mine, peer, strict=False):
            if not callable(expected.default) or expected.default is inspect.Parameter.empty:
                assert own.default == expected.default
