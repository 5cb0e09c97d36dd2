"""Every sampler against its update equation in plain PyTorch, in float64 and with the same noise."""

from __future__ import annotations

import functools
import math

import plain_k_diffusion as plain
import pytest
import torch
from tolerance import SAMPLER_FLOAT32, SAMPLER_FLOAT64, assert_same_bits, relative_error

import edm_fast
from edm_fast.compat import k_diffusion as ours

LATENTS = torch.randn([2, 1, 3, 3], dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def nonlinear(x, sigma):
    """A smooth model that is no true denoiser, so that nothing cancels; σ is a number or a vector."""
    noise = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, *[1] * (x.dim() - 1))
    return 0.3 + x * 0.25 / (0.25 + noise**2) + 0.2 * torch.tanh(x / (1 + noise))


def seeded(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)


LEVELS = {
    "to zero": ours.get_sigmas_karras(7, 0.05, 20).double().tolist(),
    "between levels": ours.get_sigmas_exponential(6, 0.2, 9).double().tolist()[:-1],
    "one step": [3.0, 0.0],
    "two steps": [3.0, 0.7, 0.2],
}
CHURN = {"s_churn": 3, "s_tmin": 0.1, "s_tmax": 15, "s_noise": 1.05}
STOCHASTIC = {"eta": 0.6, "s_noise": 1.1}
EQUATIONS = {
    **{name: functools.partial(plain.churned, name) for name in ("euler", "heun", "dpm_2")},
    "euler_ancestral": functools.partial(plain.ancestral, "euler"),
    "dpm_2_ancestral": functools.partial(plain.ancestral, "dpm_2"),
    "dpmpp_2s_ancestral": functools.partial(plain.ancestral, "dpmpp_2s"),
    "lms": plain.lms,
    "dpmpp_2m": plain.dpmpp_2m,
    "dpmpp_sde": plain.dpmpp_sde,
    "dpmpp_2m_sde": functools.partial(plain.multistep_sde, 2),
    "dpmpp_3m_sde": functools.partial(plain.multistep_sde, 3),
}
CASES = [
    *((name, options) for name in ("euler", "heun", "dpm_2") for options in ({}, CHURN, {"s_churn": 1e9})),
    *(
        (name, options)
        for name in ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral")
        for options in ({}, STOCHASTIC, {"eta": 0}, {"eta": 1.5})
    ),
    *(("lms", {"order": order}) for order in (1, 2, 3, 4)),
    ("dpmpp_2m", {}),
    *(("dpmpp_sde", options) for options in ({}, {**STOCHASTIC, "r": 0.3}, {"eta": 0})),
    *(("dpmpp_2m_sde", {"solver_type": kind, **STOCHASTIC}) for kind in ("heun", "midpoint")),
    ("dpmpp_2m_sde", {"solver_type": "heun", "eta": 0}),
    *(("dpmpp_3m_sde", options) for options in ({}, STOCHASTIC, {"eta": 0})),
]


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_samplers_follow_their_equations(name, options, levels):
    sigmas = LEVELS[levels]
    x = LATENTS * sigmas[0]
    noise = {} if name in ("lms", "dpmpp_2m") else {"randn_like": seeded()}
    actual = getattr(ours, f"sample_{name}")(
        nonlinear, x, torch.tensor(sigmas).double(), disable=True, **options, **noise
    )
    expected = EQUATIONS[name](nonlinear, x, torch.tensor(sigmas).double().tolist(), seeded(), **options)
    assert actual.dtype == torch.float64
    assert relative_error(actual, expected) <= SAMPLER_FLOAT64


@pytest.mark.parametrize("options", [{}, STOCHASTIC], ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 9])
def test_dpm_fast_follows_its_equations(n, options):
    actual = ours.sample_dpm_fast(nonlinear, LATENTS * 9, 0.1, 9, n, disable=True, randn_like=seeded(), **options)
    expected = plain.dpm_fast(nonlinear, LATENTS * 9, 0.1, 9, n, seeded(), **options)
    assert relative_error(actual, expected) <= SAMPLER_FLOAT64


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("options", [{}, {"h_init": 3.0, "rtol": 0.01}, STOCHASTIC], ids=str)
def test_dpm_adaptive_follows_its_equations(order, options):
    arguments = {"order": order, **options}
    actual, info = ours.sample_dpm_adaptive(
        nonlinear, LATENTS * 9, 0.1, 9, disable=True, randn_like=seeded(), return_info=True, **arguments
    )
    expected = plain.dpm_adaptive(nonlinear, LATENTS * 9, 0.1, 9, seeded(), **arguments)
    assert relative_error(actual, expected) <= SAMPLER_FLOAT64
    assert info["steps"] == info["n_accept"] + info["n_reject"]
    assert info["nfe"] == order * info["steps"]
    assert info["n_reject"] > 0 or "h_init" not in options
    assert info["n_accept"] > 1


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_seeds_give_the_noise_of_randn(name):
    """Number i of a run is draw i + 1."""
    sigmas, seeds = ours.get_sigmas_karras(6, 0.1, 10), [5, -3]
    x = edm_fast.randn((1, 3, 3), seeds) * sigmas[0]
    draws = iter(range(1, 100))
    sampler = getattr(ours, f"sample_{name}")
    drawn = sampler(nonlinear, x, sigmas, noise_sampler=lambda *_: edm_fast.randn((1, 3, 3), seeds, next(draws)))
    assert_same_bits(sampler(nonlinear, x, sigmas, seeds=seeds), drawn)


@pytest.mark.parametrize("name", ["fast", "adaptive"])
def test_seeds_give_dpm_solver_the_noise_of_randn(name):
    seeds = [5, -3]
    x = edm_fast.randn((1, 3, 3), seeds) * 10
    draws = iter(range(1, 100))
    length = {"n": 8} if name == "fast" else {}
    sampler = functools.partial(getattr(ours, f"sample_dpm_{name}"), nonlinear, x, 0.1, 10, eta=0.8, **length)
    drawn = sampler(noise_sampler=lambda *_: edm_fast.randn((1, 3, 3), seeds, next(draws)))
    assert_same_bits(sampler(seeds=seeds), drawn)


def test_seeds_give_dpmpp_sde_one_brownian_path():
    """The noise of a whole step is made of that of its first part and that of the rest, by their lengths in σ."""
    sigmas, seeds, r = ours.get_sigmas_karras(6, 0.1, 10).double(), [5, -3], 0.4
    x = edm_fast.randn((1, 3, 3), seeds, dtype=torch.float64) * sigmas[0]
    draws, first = iter(range(1, 100)), []

    def noise_sampler(sigma, sigma_next):
        z = edm_fast.randn((1, 3, 3), seeds, next(draws), dtype=torch.float64)
        first.append((sigma_next, z))
        if len(first) % 2 == 1:
            return z
        middle, z_first = first[-2]
        part = (sigma - middle) / (sigma - sigma_next)
        return part.sqrt() * z_first + (1 - part).sqrt() * z

    drawn = ours.sample_dpmpp_sde(nonlinear, x, sigmas, noise_sampler=noise_sampler, r=r)
    assert relative_error(ours.sample_dpmpp_sde(nonlinear, x, sigmas, seeds=seeds, r=r), drawn) <= SAMPLER_FLOAT64


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[0] not in ("lms", "dpmpp_2m")], ids=str)
def test_a_sample_depends_on_its_seed_alone(name, options):
    sampler, sigmas, seeds = getattr(ours, f"sample_{name}"), ours.get_sigmas_karras(5, 0.1, 10), [11, 12, 13]
    x = edm_fast.randn((1, 3, 3), seeds) * sigmas[0]
    together = sampler(nonlinear, x, sigmas, disable=True, seeds=seeds, **options)
    assert_same_bits(sampler(nonlinear, x[1:2], sigmas, disable=True, seeds=[12], **options), together[1:2])


def test_schedules_by_their_formulas():
    ramp = [i / 4 for i in range(5)]
    expected = {
        "karras": [(10 ** (1 / 7) + u * (0.1 ** (1 / 7) - 10 ** (1 / 7))) ** 7 for u in ramp],
        "exponential": [10 * 0.01**u for u in ramp],
        "polyexponential": [math.exp(math.log(0.1) + (1 - u) ** 2 * math.log(100)) for u in ramp],
    }
    for name, levels in expected.items():
        options = {"rho": 2.0} if name == "polyexponential" else {}
        actual = getattr(ours, f"get_sigmas_{name}")(5, 0.1, torch.tensor(10.0), **options)
        assert actual.tolist() == pytest.approx([*levels, 0], rel=SAMPLER_FLOAT32)
    vp = ours.get_sigmas_vp(5, beta_d=15.0, beta_min=0.2, eps_s=0.01)
    times = [1 + u * (0.01 - 1) for u in ramp]
    # exp(…) - 1 in float32 costs digits at small t.
    exact = [math.sqrt(math.expm1(15 * t**2 / 2 + 0.2 * t)) for t in times]
    assert vp.tolist() == pytest.approx([*exact, 0], rel=10 * SAMPLER_FLOAT32)
