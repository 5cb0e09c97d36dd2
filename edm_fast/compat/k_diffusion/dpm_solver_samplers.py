"""The samplers that take a range of noise levels and choose the levels themselves; see `samplers` for the arguments."""

from __future__ import annotations

import math
from typing import Any

import torch

from edm_fast.compat.k_diffusion.adaptive import AdaptiveRun, StepSize
from edm_fast.compat.k_diffusion.checks import check_level, check_not_negative
from edm_fast.compat.k_diffusion.dpm_solver import dpm_fast_table, fast_levels
from edm_fast.compat.k_diffusion.noise import NoiseSampler, RandnLike, Seeds, noise_of
from edm_fast.compat.k_diffusion.running import Callback, Model, request_of, run
from edm_fast.compat.k_diffusion.samplers import ExtraArgs
from edm_fast.samplers.arguments import check_count, check_number, check_positive


def sample_dpm_fast(
    model: Model,
    x: torch.Tensor,
    sigma_min: float,
    sigma_max: float,
    n: int,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    *,
    randn_like: RandnLike | None = None,
    seeds: Seeds | None = None,
) -> torch.Tensor:
    """DPM-Solver in n evaluations from sigma_max to sigma_min: steps of order 3, even in ln σ, and a shorter end.

    With sigma_min > sigma_max the ODE runs upwards, and eta must be 0. The noise sampler is called at the end of every
    step, used or not. The callback's dict also has t = -ln σ and t_up.
    """
    n, eta, s_noise = check_count("n", n), check_not_negative("eta", eta), check_not_negative("s_noise", s_noise)
    low, high = _range(sigma_min, sigma_max, eta)
    if low == high:
        raise ValueError(f"sigma_min: got {low}, which is sigma_max too; there is no step to take")
    request = request_of(model, x, extra_args, callback, disable)
    levels, _ = fast_levels(high, low, n)
    like: dict[str, Any] = {"dtype": torch.get_default_dtype(), "device": request.x.device}
    sigmas = torch.tensor(levels, **like)
    noise = noise_of(request.x, lambda step: (sigmas[step], sigmas[step + 1]), noise_sampler, randn_like, seeds)

    def describe(step: int, sigma_hat: float) -> dict[str, Any]:
        sigma = sigmas[step]
        time = sigma.log().neg()
        return {"i": step, "sigma": sigma, "sigma_hat": sigma, "t": time, "t_up": time}

    return run(request, dpm_fast_table(high, low, n, eta, s_noise), noise, describe, count_evaluations=True)


def sample_dpm_adaptive(
    model: Model,
    x: torch.Tensor,
    sigma_min: float,
    sigma_max: float,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    return_info: bool = False,
    *,
    randn_like: RandnLike | None = None,
    seeds: Seeds | None = None,
) -> torch.Tensor | tuple[torch.Tensor, dict[str, int]]:
    """DPM-Solver of order 2 or 3 from sigma_max to sigma_min with step sizes in ln σ by a PID controller.

    A step is taken if its error, by comparison with the same step of one order less, is tolerated: rtol of the value or
    atol, in the root mean square over the whole batch, so the batch does matter here. The first step tried is h_init.
    The noise sampler is called for every step taken, used or not. With `return_info` a dict comes too: steps, nfe,
    n_accept, n_reject. The callback is called after each trial; its dict also has these, t = -ln σ, t_up, error and h.

    Raises FloatingPointError if the model gives NaN or infinity, or if no step is tolerated.
    """
    if order not in (2, 3):
        raise ValueError(f"order: got {order!r}; it is 2 or 3")
    rtol, atol = check_not_negative("rtol", rtol), check_not_negative("atol", atol)
    eta, s_noise = check_not_negative("eta", eta), check_not_negative("s_noise", s_noise)
    h = check_positive("h_init", abs(check_number("h_init", h_init)))
    low, high = _range(sigma_min, sigma_max, eta)
    step_size = StepSize(
        h=math.copysign(h, high - low),
        pcoeff=check_number("pcoeff", pcoeff),
        icoeff=check_number("icoeff", icoeff),
        dcoeff=check_number("dcoeff", dcoeff),
        order=1.5 if eta else order,
        accept_safety=check_number("accept_safety", accept_safety),
    )
    request = request_of(model, x, extra_args, callback, disable)

    ways: list[tuple[torch.Tensor, torch.Tensor]] = []
    adaptive = AdaptiveRun(
        request=request,
        sigma_max=high,
        sigma_min=low,
        order=order,
        rtol=rtol,
        atol=atol,
        eta=eta,
        s_noise=s_noise,
        noise=noise_of(request.x, ways.__getitem__, noise_sampler, randn_like, seeds),
        ways=ways,
        step_size=step_size,
    )
    samples = adaptive.run() if request.x.shape[0] > 0 else request.x.clone()
    return (samples, adaptive.counts.as_dict()) if return_info else samples


def _range(sigma_min: float, sigma_max: float, eta: float) -> tuple[float, float]:
    low, high = check_level("sigma_min", sigma_min), check_level("sigma_max", sigma_max)
    if eta and low >= high:
        raise ValueError(f"eta: got {eta}; it must be 0 where sigma_min = {low} is not below sigma_max = {high}")
    return low, high
