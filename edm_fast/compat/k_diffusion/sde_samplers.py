"""The samplers of the SDE over given noise levels; see `samplers` for what all arguments mean.

Without a source of noise they take that of `BrownianTreeNoiseSampler`, seeded by torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from edm_fast.compat.k_diffusion import multistep, one_step
from edm_fast.compat.k_diffusion.checks import Levels, check_not_negative, level_list, sigma_tensor
from edm_fast.compat.k_diffusion.noise import BrownianTreeNoiseSampler, NoiseSampler, RandnLike, Seeds, noise_of
from edm_fast.compat.k_diffusion.running import Callback, Model, request_of
from edm_fast.compat.k_diffusion.samplers import ExtraArgs, over_levels
from edm_fast.samplers.arguments import check_choice, check_positive


def sample_dpmpp_sde(
    model: Model,
    x: torch.Tensor,
    sigmas: Levels,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    r: float = 1 / 2,
    *,
    randn_like: RandnLike | None = None,
    seeds: Seeds | None = None,
) -> torch.Tensor:
    """DPM-Solver++ for the SDE with a second evaluation at the share r, in (0, 1], of a step in ln σ.

    The noise sampler is called twice in every step but one to 0: from its start to the middle and from its start to its
    end. By `seeds` both are parts of one Brownian path, as they are by a Brownian tree.
    """
    eta, s_noise = check_not_negative("eta", eta), check_not_negative("s_noise", s_noise)
    r = check_positive("r", r)
    if r > 1:
        raise ValueError(f"r: got {r}; it is in (0, 1]")
    request = request_of(model, x, extra_args, callback, disable)
    levels = sigma_tensor(sigmas)
    time = levels.log().neg()

    def way(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        # Rounded as k-diffusion rounds it: a Brownian path is another one at a time that differs in the last bit.
        step, is_whole = divmod(number, 2)
        start, end = time[step], time[step + 1]
        return start.neg().exp(), (end if is_whole else start + (end - start) * r).neg().exp()

    noise = noise_of(request.x, way, noise_sampler, randn_like, seeds, _brownian(request.x, levels))
    one_path = noise.seeds is not None
    return over_levels(
        request,
        levels,
        "falling",
        lambda given: one_step.dpmpp_sde_table(given, eta, s_noise, r, one_path),
        noise,
    )


def sample_dpmpp_2m_sde(
    model: Model,
    x: torch.Tensor,
    sigmas: Levels,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    solver_type: str = "midpoint",
    *,
    randn_like: RandnLike | None = None,
    seeds: Seeds | None = None,
) -> torch.Tensor:
    """DPM-Solver++(2M) for the SDE; solver_type is "midpoint" or "heun".

    The noise sampler is called at the end of every step but one to 0, if eta is not 0.
    """
    eta, s_noise = check_not_negative("eta", eta), check_not_negative("s_noise", s_noise)
    solver_type = check_choice("solver_type", solver_type, ("midpoint", "heun"))
    request = request_of(model, x, extra_args, callback, disable)
    levels = sigma_tensor(sigmas)
    noise = noise_of(
        request.x, _steps(levels), noise_sampler, randn_like, seeds, _brownian(request.x, levels) if eta else None
    )
    return over_levels(
        request,
        levels,
        "falling",
        lambda given: multistep.dpmpp_2m_sde_table(given, eta, s_noise, solver_type),
        noise,
    )


def sample_dpmpp_3m_sde(
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
    """DPM-Solver++(3M) for the SDE; noise as in `sample_dpmpp_2m_sde`."""
    eta, s_noise = check_not_negative("eta", eta), check_not_negative("s_noise", s_noise)
    request = request_of(model, x, extra_args, callback, disable)
    levels = sigma_tensor(sigmas)
    noise = noise_of(
        request.x, _steps(levels), noise_sampler, randn_like, seeds, _brownian(request.x, levels) if eta else None
    )
    return over_levels(
        request, levels, "falling", lambda given: multistep.dpmpp_3m_sde_table(given, eta, s_noise), noise
    )


def _steps(levels: torch.Tensor) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
    return lambda step: (levels[step], levels[step + 1])


def _brownian(x: torch.Tensor, levels: torch.Tensor) -> Callable[[], NoiseSampler]:
    """A Brownian tree over the whole range of levels, made when it is first asked for."""

    def make() -> NoiseSampler:
        level_list(levels, "falling")
        positive = levels[levels > 0]
        if positive.numel() < 2:  # no step that draws noise
            return lambda sigma, sigma_next: torch.randn_like(x)
        return BrownianTreeNoiseSampler(x, positive.min(), positive.max())

    return make
