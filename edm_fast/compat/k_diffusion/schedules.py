"""Noise levels from high to low and then 0, under k-diffusion's names.

Each function returns a tensor [n + 1] of the default dtype, float32, on `device`, as there: some samplers draw noise by
the very values. n is at least 1, and every other number is positive and finite: TypeError or ValueError names the one
that is not.
"""

from __future__ import annotations

import math

import torch

from edm_fast.compat.k_diffusion.checks import check_level
from edm_fast.samplers.arguments import check_count

Device = torch.device | str


def _then_zero(sigmas: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(sigmas, (0, 1))


def get_sigmas_karras(
    n: int, sigma_min: float, sigma_max: float, rho: float = 7.0, device: Device = "cpu"
) -> torch.Tensor:
    """float32 [n + 1]: σ^{1/ρ} evenly spaced from sigma_max to sigma_min (Karras et al. 2022, equation 5), then 0."""
    n, rho = check_count("n", n), check_level("rho", rho)
    low, high = (check_level(*bound) ** (1 / rho) for bound in (("sigma_min", sigma_min), ("sigma_max", sigma_max)))
    return _then_zero((high + torch.linspace(0, 1, n, device=device) * (low - high)) ** rho)


def get_sigmas_exponential(n: int, sigma_min: float, sigma_max: float, device: Device = "cpu") -> torch.Tensor:
    """float32 [n + 1]: ln σ evenly spaced from sigma_max to sigma_min, then 0."""
    n, low, high = check_count("n", n), check_level("sigma_min", sigma_min), check_level("sigma_max", sigma_max)
    return _then_zero(torch.linspace(math.log(high), math.log(low), n, device=device).exp())


def get_sigmas_polyexponential(
    n: int, sigma_min: float, sigma_max: float, rho: float = 1.0, device: Device = "cpu"
) -> torch.Tensor:
    """float32 [n + 1]: ln σ = ln sigma_min + u^ρ (ln sigma_max - ln sigma_min), u evenly spaced from 1 to 0; then 0."""
    n, rho = check_count("n", n), check_level("rho", rho)
    low, high = math.log(check_level("sigma_min", sigma_min)), math.log(check_level("sigma_max", sigma_max))
    return _then_zero(((high - low) * torch.linspace(1, 0, n, device=device) ** rho + low).exp())


def get_sigmas_vp(
    n: int, beta_d: float = 19.9, beta_min: float = 0.1, eps_s: float = 1e-3, device: Device = "cpu"
) -> torch.Tensor:
    """float32 [n + 1]: σ(t) = √(exp(½ β_d t² + β_min t) - 1) at evenly spaced t from 1 to eps_s, then 0.

    The subtraction is done in float32, as networks were trained: at small t it differs from the exact value.
    """
    n, eps_s = check_count("n", n), check_level("eps_s", eps_s)
    beta_d, beta_min = check_level("beta_d", beta_d), check_level("beta_min", beta_min)
    t = torch.linspace(1, eps_s, n, device=device)
    return _then_zero(torch.sqrt(torch.exp(beta_d * t**2 / 2 + beta_min * t) - 1))
