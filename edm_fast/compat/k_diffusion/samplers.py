"""The samplers over given noise levels, as k-diffusion names them.

All take `model(x, sigma, **extra_args)` → D(x; σ), any function, with σ as a vector [N] in x's dtype; `x`, [N, …] at
the noise level sigmas[0] (that is, latents times sigmas[0]); and `sigmas`, 1-D, from high to low, usually with a 0 at
the end. They return x at the last level, in its dtype. No gradients are recorded.

`callback` gets a dict once per step, after the step's first evaluation and before the update: x (the point of
evaluation, churn included), i, sigma, sigma_hat and denoised. What it writes into x or denoised goes into the update.
`disable` is that of the progress bar. Noise has one source: `noise_sampler(sigma, sigma_next)`; `randn_like(x)`; or
`seeds`, N integers, by which each sample gets the noise of `edm_fast.randn`, number i of the run being draw i + 1.

ValueError and TypeError name the argument that does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from edm_fast.compat.k_diffusion import multistep, one_step
from edm_fast.compat.k_diffusion.checks import Levels, check_churn, check_not_negative, level_list, sigma_tensor
from edm_fast.compat.k_diffusion.noise import Noise, NoiseSampler, RandnLike, Seeds, noise_of
from edm_fast.compat.k_diffusion.running import Callback, Model, Request, request_of, run
from edm_fast.samplers.arguments import check_count
from edm_fast.samplers.table import SolverTable

ExtraArgs = Mapping[str, Any] | None


def sample_euler(
    model: Model,
    x: torch.Tensor,
    sigmas: Levels,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    *,
    randn_like: RandnLike | None = None,
    seeds: Seeds | None = None,
) -> torch.Tensor:
    """Algorithm 2 of Karras et al. 2022 by Euler's rule.

    Noise is raised by the share min(s_churn/n, √2-1) where s_tmin ≤ σ ≤ s_tmax, n being the number of steps, and what
    is added is s_noise times standard normal. `randn_like` is called at the start of every step, used or not.
    """
    request = request_of(model, x, extra_args, callback, disable)
    return _churned("euler", request, sigmas, (s_churn, s_tmin, s_tmax, s_noise), randn_like, seeds)


def sample_heun(
    model: Model,
    x: torch.Tensor,
    sigmas: Levels,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    *,
    randn_like: RandnLike | None = None,
    seeds: Seeds | None = None,
) -> torch.Tensor:
    """Algorithm 2 of Karras et al. 2022 by Heun's rule, and Euler's for a step to 0; noise as in `sample_euler`."""
    request = request_of(model, x, extra_args, callback, disable)
    return _churned("heun", request, sigmas, (s_churn, s_tmin, s_tmax, s_noise), randn_like, seeds)


def sample_dpm_2(
    model: Model,
    x: torch.Tensor,
    sigmas: Levels,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    *,
    randn_like: RandnLike | None = None,
    seeds: Seeds | None = None,
) -> torch.Tensor:
    """The midpoint rule with the middle in ln σ, and Euler's for a step to 0; noise as in `sample_euler`."""
    request = request_of(model, x, extra_args, callback, disable)
    return _churned("dpm_2", request, sigmas, (s_churn, s_tmin, s_tmax, s_noise), randn_like, seeds)


def sample_euler_ancestral(
    model: Model,
    x: torch.Tensor,
    sigmas: Levels,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    *,
    randn_like: RandnLike | None = None,
    seeds: Seeds | None = None,
) -> torch.Tensor:
    """Euler's rule to a level below the next, and s_noise times noise up to it; eta = 0 is the ODE.

    The noise sampler is called at the end of every step but one to 0.
    """
    request = request_of(model, x, extra_args, callback, disable)
    return _ancestral("euler", request, sigmas, eta, s_noise, noise_sampler, randn_like, seeds)


def sample_dpm_2_ancestral(
    model: Model,
    x: torch.Tensor,
    sigmas: Levels,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    *,
    randn_like: RandnLike | None = None,
    seeds: Seeds | None = None,
) -> torch.Tensor:
    """`sample_euler_ancestral` with the midpoint rule of `sample_dpm_2`."""
    request = request_of(model, x, extra_args, callback, disable)
    return _ancestral("dpm_2", request, sigmas, eta, s_noise, noise_sampler, randn_like, seeds)


def sample_dpmpp_2s_ancestral(
    model: Model,
    x: torch.Tensor,
    sigmas: Levels,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    *,
    randn_like: RandnLike | None = None,
    seeds: Seeds | None = None,
) -> torch.Tensor:
    """`sample_euler_ancestral` with DPM-Solver++(2S): the midpoint rule on D."""
    request = request_of(model, x, extra_args, callback, disable)
    return _ancestral("dpmpp_2s", request, sigmas, eta, s_noise, noise_sampler, randn_like, seeds)


def sample_lms(
    model: Model,
    x: torch.Tensor,
    sigmas: Levels,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    order: int = 4,
) -> torch.Tensor:
    """A linear multistep method of `order` 1 to 4."""
    order = check_count("order", order)
    if order > multistep.MAX_LMS_ORDER:
        raise ValueError(f"order: got {order}; it is at most {multistep.MAX_LMS_ORDER}")
    request = request_of(model, x, extra_args, callback, disable)
    return over_levels(request, sigmas, "distinct", lambda levels: multistep.lms_table(levels, order))


def sample_dpmpp_2m(
    model: Model,
    x: torch.Tensor,
    sigmas: Levels,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> torch.Tensor:
    """DPM-Solver++(2M): second order with one evaluation per step."""
    request = request_of(model, x, extra_args, callback, disable)
    return over_levels(request, sigmas, "distinct", multistep.dpmpp_2m_table)


def _churned(
    solver: str,
    request: Request,
    sigmas: Levels,
    churn: tuple[float, float, float, float],
    randn_like: RandnLike | None,
    seeds: Seeds | None,
) -> torch.Tensor:
    checked = check_churn(*churn)
    levels = sigma_tensor(sigmas)
    noise = noise_of(request.x, lambda step: (levels[step], levels[step + 1]), None, randn_like, seeds)
    return over_levels(request, levels, "any", lambda given: one_step.churned_table(solver, given, checked), noise)


def _ancestral(
    solver: str,
    request: Request,
    sigmas: Levels,
    eta: float,
    s_noise: float,
    noise_sampler: NoiseSampler | None,
    randn_like: RandnLike | None,
    seeds: Seeds | None,
) -> torch.Tensor:
    eta, s_noise = check_not_negative("eta", eta), check_not_negative("s_noise", s_noise)
    levels = sigma_tensor(sigmas)
    noise = noise_of(request.x, lambda step: (levels[step], levels[step + 1]), noise_sampler, randn_like, seeds)
    order = "any" if eta == 0 else "falling"
    return over_levels(
        request, levels, order, lambda given: one_step.ancestral_table(solver, given, eta, s_noise), noise
    )


def over_levels(
    request: Request,
    sigmas: Levels,
    order: str,
    make_table: Callable[[list[float]], SolverTable],
    noise: Noise | None = None,
) -> torch.Tensor:
    """Run the table for the noise levels, which are checked as `level_list` does; x itself if there is no step."""
    tensor = sigma_tensor(sigmas)
    levels = level_list(tensor, order)
    if len(levels) < 2:
        return request.x

    def describe(step: int, sigma_hat: float) -> dict[str, Any]:
        return {"i": step, "sigma": tensor[step], "sigma_hat": tensor.new_tensor(sigma_hat)}

    return run(request, make_table(levels), noise or Noise(), describe)
