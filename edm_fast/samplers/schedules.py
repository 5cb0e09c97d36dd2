"""Noise levels to step through: each function gives σ_0 > σ_1 > … > σ_{n-1}, float64 [n], without the final 0.

Sources: Karras et al. 2022 (arXiv 2206.00364), table 1 and its appendix, for `edm`, `vp`, `ve` and `iddpm`;
k-diffusion for `exponential` and `polyexponential`.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from edm_fast.samplers.curves import VP_BETA_D, VP_BETA_MIN, VPCurve, fit_vp_curve


def _fractions(num_steps: int) -> np.ndarray:
    """i / (n - 1) for i = 0 … n-1; a single step stands at 0."""
    return np.arange(num_steps, dtype=np.float64) / max(num_steps - 1, 1)


def edm_sigmas(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80, rho: float = 7) -> np.ndarray:
    """σ_i = (σ_max^{1/ρ} + i/(n-1) (σ_min^{1/ρ} - σ_max^{1/ρ}))^ρ, equation 5 of the paper."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + _fractions(num_steps) * (low - high)) ** rho


def vp_sigmas(num_steps: int, sigma_min: float, sigma_max: float, epsilon_s: float = 1e-3) -> np.ndarray:
    """σ at evenly spaced t from 1 to ε_s, on the VP curve that runs from σ_max to σ_min there."""
    curve = fit_vp_curve(sigma_min, sigma_max, epsilon_s)
    return np.array([curve.sigma(1 + fraction * (epsilon_s - 1)) for fraction in _fractions(num_steps)])


def ve_sigmas(num_steps: int, sigma_min: float = 0.02, sigma_max: float = 100) -> np.ndarray:
    """σ² geometric from σ_max² to σ_min²."""
    return np.sqrt(sigma_max**2 * (sigma_min**2 / sigma_max**2) ** _fractions(num_steps))


def iddpm_levels(C_1: float = 0.001, C_2: float = 0.008, M: int = 1000) -> np.ndarray:
    """u_0 > … > u_M = 0 with u_{j-1} = √((u_j² + 1) / max(ᾱ(j-1)/ᾱ(j), C_1) - 1), ᾱ(j) = sin²(½π j / (M (C_2 + 1))).

    ᾱ and its ratios are float32 and the recursion is float64, as the published tables were made.
    """
    alpha_bar = (0.5 * math.pi * torch.arange(M + 1, dtype=torch.float32) / M / (C_2 + 1)).sin() ** 2
    ratios = (alpha_bar[:-1] / alpha_bar[1:]).clamp(min=C_1).tolist()
    levels = [0.0]
    for ratio in reversed(ratios):
        levels.append(math.sqrt((levels[-1] ** 2 + 1) / ratio - 1))
    return np.array(levels[::-1])


def iddpm_sigmas(
    num_steps: int,
    sigma_min: float = 0.002,
    sigma_max: float = 81,
    C_1: float = 0.001,
    C_2: float = 0.008,
    M: int = 1000,
) -> np.ndarray:
    """The levels u_j inside [σ_min, σ_max], taken at the positions nearest to n evenly spaced ones.

    Raises ValueError if no level lies in the range.
    """
    levels = iddpm_levels(C_1, C_2, M)
    inside = levels[(levels >= sigma_min) & (levels <= sigma_max)]
    if inside.size == 0:
        raise ValueError(f"sigma_min, sigma_max: no iDDPM noise level lies in [{sigma_min}, {sigma_max}]")
    positions = np.round((inside.size - 1) * _fractions(num_steps)).astype(np.int64)
    return inside[positions]


def polyexponential_sigmas(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 1) -> np.ndarray:
    """ln σ_i = ln σ_min + (1 - i/(n-1))^ρ (ln σ_max - ln σ_min)."""
    ramp = (1 - _fractions(num_steps)) ** rho
    return np.exp(math.log(sigma_min) + ramp * (math.log(sigma_max) - math.log(sigma_min)))


def exponential_sigmas(num_steps: int, sigma_min: float, sigma_max: float) -> np.ndarray:
    """σ geometric from σ_max to σ_min."""
    return polyexponential_sigmas(num_steps, sigma_min, sigma_max, rho=1)


# Default (sigma_min, sigma_max) per discretization.
_VP = VPCurve(VP_BETA_D, VP_BETA_MIN)


def default_range(discretization: str, epsilon_s: float = 1e-3) -> tuple[float, float]:
    """(σ_min, σ_max) that a discretization covers unless told otherwise."""
    ranges = {
        "vp": (_VP.sigma(epsilon_s), _VP.sigma(1)),
        "ve": (0.02, 100.0),
        "iddpm": (0.002, 81.0),
    }
    return ranges.get(discretization, (0.002, 80.0))
