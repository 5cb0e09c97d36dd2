"""Steps, noise levels and churn: one step is Euler's, what is out of range is named, churn is cut as published."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from generate_command import run
from tolerance import SAMPLER_FLOAT32, SAMPLER_FLOAT64, assert_same_bits, relative_error

import edm_fast
from edm_fast.compat import k_diffusion
from edm_fast.compat.diffusers import EDMEulerScheduler, EDMHeunScheduler
from edm_fast.samplers import ablation_sampler, edm_sampler

LATENTS = edm_fast.randn((2, 4, 4), [1, 2], dtype=torch.float64)
NAN, INF, HUGE = math.nan, math.inf, 10**400


def denoiser(x: torch.Tensor, sigma: torch.Tensor, class_labels: Any = None) -> torch.Tensor:
    return x / (1 + sigma**2)


def never(*arguments: Any) -> torch.Tensor:
    raise AssertionError("the network was called before the arguments were checked")


SAMPLERS: dict[str, Callable[..., torch.Tensor]] = {
    "sample": lambda net, **options: edm_fast.sample(net, [1, 2], shape=(2, 4, 4), **options),
    "edm_sampler": lambda net, **options: edm_sampler(net, LATENTS, **options),
    "ablation_sampler": lambda net, **options: ablation_sampler(net, LATENTS, **options),
}


@pytest.fixture(params=SAMPLERS)
def sampler(request: pytest.FixtureRequest) -> Callable[..., torch.Tensor]:
    return SAMPLERS[request.param]


def test_one_step_is_one_step_of_euler(sampler):
    calls = []

    def net(x, sigma, class_labels=None):
        calls.append(float(sigma))
        return denoiser(x, sigma)

    images = sampler(net, num_steps=1)
    assert calls == [pytest.approx(80)]
    # x + (0 - σ)·(x - D)/σ is D itself.
    expected = denoiser(80 * LATENTS, torch.tensor(80.0, dtype=torch.float64))
    assert relative_error(images, expected) <= (SAMPLER_FLOAT32 if images.dtype == torch.float32 else SAMPLER_FLOAT64)


@pytest.mark.parametrize("scheduler_class", [EDMEulerScheduler, EDMHeunScheduler])
def test_one_step_of_a_scheduler_is_one_evaluation_that_gives_its_denoised_image(scheduler_class):
    scheduler = scheduler_class()
    scheduler.set_timesteps(1)
    [timestep] = scheduler.timesteps
    sample = scheduler.init_noise_sigma * LATENTS
    result = scheduler.step(scheduler.scale_model_input(sample, timestep), timestep, sample)
    assert relative_error(result.prev_sample, result.pred_original_sample) <= SAMPLER_FLOAT64


BAD = [
    ("num_steps", 0, ValueError, "got 0; it must be at least 1"),
    ("num_steps", -3, ValueError, "got -3; it must be at least 1"),
    ("num_steps", np.int64(0), ValueError, "got 0; it must be at least 1"),
    ("num_steps", 10**12, ValueError, "got 1000000000000; it must be at most 100000"),
    ("num_steps", 2**70, ValueError, "got 1180591620717411303424; it must be at most 100000"),
    ("num_steps", 2.0, TypeError, "got 2.0; it is an integer"),
    ("num_steps", True, TypeError, "got True; it is an integer"),
    ("num_steps", np.True_, TypeError, "got np.True_; it is an integer"),
    ("num_steps", torch.tensor(2), TypeError, r"got tensor\(2\); it is an integer"),
    ("num_steps", "2", TypeError, "got '2'; it is an integer"),
    ("num_steps", None, TypeError, "got None; it is an integer"),
    ("sigma_min", 0, ValueError, "got 0; it must be positive and finite"),
    ("sigma_min", -0.0, ValueError, "got -0.0; it must be positive and finite"),
    ("sigma_min", -1, ValueError, "got -1; it must be positive and finite"),
    ("sigma_min", NAN, ValueError, "got NaN; it must be a number"),
    ("sigma_min", np.float32("nan"), ValueError, "got NaN; it must be a number"),
    ("sigma_min", 100, ValueError, "got 100.0, which is above sigma_max = 80.0"),
    ("sigma_min", HUGE, ValueError, "got a number beyond the range of float64"),
    ("sigma_min", torch.tensor(0.5), TypeError, r"got tensor\(0.5000\); it is a number"),
    ("sigma_min", True, TypeError, "got True; it is a number"),
    ("sigma_max", 0.0, ValueError, "got 0.0; it must be positive and finite"),
    ("sigma_max", NAN, ValueError, "got NaN; it must be a number"),
    ("sigma_max", INF, ValueError, "got inf; it must be positive and finite"),
    ("sigma_max", "80", TypeError, "got '80'; it is a number"),
    ("S_churn", NAN, ValueError, "got NaN; it must be a number"),
    ("S_churn", -1, ValueError, "got -1; it must not be negative"),
    ("S_churn", -1e-300, ValueError, "got -1e-300; it must not be negative"),
    ("S_churn", -INF, ValueError, "got -inf; it must not be negative"),
    ("S_churn", HUGE, ValueError, "got a number beyond the range of float64"),
    ("S_churn", None, TypeError, "got None; it is a number"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD)
def test_what_is_out_of_range_is_named_with_its_value_before_any_evaluation(sampler, name, value, error, message):
    with pytest.raises(error, match=f"^{name}: {message}$"):
        sampler(never, **{name: value})


def test_numpy_numbers_are_numbers(sampler):
    given = {"num_steps": np.int64(3), "sigma_min": np.float32(0.5), "sigma_max": np.float64(8), "S_churn": np.int32(0)}
    plain = {"num_steps": 3, "sigma_min": 0.5, "sigma_max": 8, "S_churn": 0}
    assert_same_bits(sampler(denoiser, **given), sampler(denoiser, **plain))


@pytest.mark.parametrize("solver", [np.array(["heun", "euler"]), ["heun"], None])
def test_a_choice_that_is_no_text_is_named(solver):
    with pytest.raises(ValueError, match=r"^solver: got .*; it is one of 'heun', 'euler'"):
        edm_fast.sample(never, [1], shape=(1, 2, 2), solver=solver)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sigma_min", 0.0, "got 0.0; it must be positive and finite"),
        ("sigma_min", NAN, "got NaN; it must be a number"),
        ("sigma_min", 90.0, "got 90.0, which is above sigma_max = 80.0"),
        ("S_churn", NAN, "got NaN; it must be a number"),
        ("S_churn", -1.0, "got -1.0; it must not be negative"),
    ],
)
def test_schedulers_name_what_is_out_of_range(name, value, message):
    with pytest.raises(ValueError, match=f"^{name}: {message}$"):
        EDMHeunScheduler(**{name: value})


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        (0, ValueError, "got 0; it must be at least 1"),
        (10**12, ValueError, "got 1000000000000; it must be at most 100000"),
        (True, TypeError, "got True; it is an integer"),
    ],
)
def test_schedulers_name_a_number_of_steps_that_makes_no_run(steps, error, message):
    with pytest.raises(error, match=f"^num_inference_steps: {message}$"):
        EDMEulerScheduler().set_timesteps(steps)


LEVELS = [
    ([5.0, -1.0, 0.0], ValueError),
    ([5.0, NAN, 0.0], ValueError),
    ([5.0, 0.0, 1.0], ValueError),
    ([5.0, HUGE], TypeError),
    ([5.0, "1"], TypeError),
    (torch.tensor([5.0, 1.0], dtype=torch.complex64), TypeError),
    (torch.tensor([5.0, 1.0], device="meta"), (TypeError, ValueError)),
]


@pytest.mark.parametrize(("levels", "error"), LEVELS)
def test_levels_of_the_callers_are_checked_one_by_one(levels, error):
    with pytest.raises(error, match=r"^sigmas: "):
        k_diffusion.sample_heun(never, LATENTS, levels, disable=True)


@pytest.mark.parametrize(("levels", "error"), LEVELS)
def test_levels_given_to_a_scheduler_are_checked(levels, error):
    with pytest.raises(error, match=r"^sigmas: "):
        EDMHeunScheduler().set_timesteps(sigmas=levels)


def test_switches_are_no_noise_levels():
    with pytest.raises(TypeError, match=r"^sigmas: dtype is torch.bool; noise levels are real numbers$"):
        k_diffusion.sample_euler(never, LATENTS, [True, False], disable=True)


@pytest.mark.parametrize(("S_churn", "num_steps"), [(41, 80), (1e9, 3), (INF, 4)])
def test_churn_beyond_the_published_bound_counts_as_the_bound(S_churn, num_steps):
    bound = (math.sqrt(2) - 1) * num_steps
    assert S_churn > bound
    expected = edm_fast.sample(denoiser, [1, 2], shape=(2, 4, 4), num_steps=num_steps, S_churn=bound)
    made = edm_fast.sample(denoiser, [1, 2], shape=(2, 4, 4), num_steps=num_steps, S_churn=S_churn)
    assert_same_bits(made, expected)


def test_the_bound_on_churn_is_documented_wherever_churn_is_asked_for():
    assert "S_churn/num_steps is cut at √2-1" in edm_sampler.__doc__
    assert "S_churn/N is cut at √2-1" in EDMHeunScheduler.__mro__[1].__doc__
    assert "min(s_churn/n, √2-1)" in k_diffusion.sample_euler.__doc__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps"),
        (["--steps", "1000000000000"], "num_steps: got 1000000000000; it must be at most 100000"),
        (["--sigma_min", "-1"], "'-1' is not above 0"),
        (["--sigma_max", "nan"], "'nan' is not a finite number"),
        (["--sigma_min", "90"], "sigma_min: got 90.0, which is above sigma_max = 80.0"),
        (["--S_churn", "-2"], "'-2' is not at least 0"),
    ],
)
def test_generate_names_the_option_and_writes_nothing(options, message, tmp_path):
    assert message in run("--outdir", tmp_path / "out", *options, expect=2)
    assert not (tmp_path / "out").exists()
