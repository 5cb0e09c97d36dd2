"""The samplers as the EDM paper writes them, step by step in PyTorch: the oracle for `edm_fast.samplers`.

The network is any callable net(x, sigma, class_labels) → D(x; σ) with sigma_min, sigma_max and round_sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def edm_sampler(
    net: Any,
    latents: Tensor,
    class_labels: Tensor | None = None,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
    S_churn: float = 0,
    S_min: float = 0,
    S_max: float = math.inf,
    S_noise: float = 1,
) -> Tensor:
    """Algorithm 2: Heun's method with churn. float64 [N, C, H, W]."""
    sigma_min, sigma_max = max(sigma_min, net.sigma_min), min(sigma_max, net.sigma_max)
    i = torch.arange(num_steps, dtype=torch.float64, device=latents.device)
    ramp = i / max(num_steps - 1, 1)
    t = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    t = torch.cat([net.round_sigma(t).double(), torch.zeros_like(t[:1])])

    x = latents.double() * t[0]
    for step in range(num_steps):
        gamma = min(S_churn / num_steps, math.sqrt(2) - 1) if S_min <= t[step] <= S_max else 0
        t_hat = net.round_sigma(t[step] + gamma * t[step]).double()
        x_hat = x + (t_hat**2 - t[step] ** 2).sqrt() * S_noise * randn_like(x)

        d = (x_hat - net(x_hat, t_hat, class_labels).double()) / t_hat
        x = x_hat + (t[step + 1] - t_hat) * d
        if step < num_steps - 1:
            d_prime = (x - net(x, t[step + 1], class_labels).double()) / t[step + 1]
            x = x_hat + (t[step + 1] - t_hat) * (0.5 * d + 0.5 * d_prime)
    return x


def ablation_sampler(
    net: Any,
    latents: Tensor,
    class_labels: Tensor | None = None,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
    num_steps: int = 18,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7,
    solver: str = "heun",
    discretization: str = "edm",
    schedule: str = "linear",
    scaling: str = "none",
    epsilon_s: float = 1e-3,
    C_1: float = 0.001,
    C_2: float = 0.008,
    M: int = 1000,
    alpha: float = 1,
    S_churn: float = 0,
    S_min: float = 0,
    S_max: float = math.inf,
    S_noise: float = 1,
) -> Tensor:
    """Algorithm 1 generalised: any discretization, σ(t), s(t) and second-order solver, with churn.

    Returns float64 [N, C, H, W].
    """

    def vp_sigma(t: Tensor, beta_d: float, beta_min: float) -> Tensor:
        return torch.expm1(0.5 * beta_d * t**2 + beta_min * t).sqrt()

    def tensor(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=latents.device)

    default_min = {"vp": float(vp_sigma(tensor(epsilon_s), 19.9, 0.1)), "ve": 0.02, "iddpm": 0.002, "edm": 0.002}
    default_max = {"vp": float(vp_sigma(tensor(1.0), 19.9, 0.1)), "ve": 100, "iddpm": 81, "edm": 80}
    sigma_min = max(default_min[discretization] if sigma_min is None else sigma_min, net.sigma_min)
    sigma_max = min(default_max[discretization] if sigma_max is None else sigma_max, net.sigma_max)
    log_min, log_max = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
    beta_d = 2 * (log_min / epsilon_s - log_max) / (epsilon_s - 1)
    beta_min = log_max - 0.5 * beta_d

    # Noise levels.
    ramp = torch.arange(num_steps, dtype=torch.float64, device=latents.device) / max(num_steps - 1, 1)
    if discretization == "vp":
        sigmas = vp_sigma(1 + ramp * (epsilon_s - 1), beta_d, beta_min)
    elif discretization == "ve":
        sigmas = (sigma_max**2 * (sigma_min**2 / sigma_max**2) ** ramp).sqrt()
    elif discretization == "iddpm":
        u = torch.zeros(M + 1, dtype=torch.float64, device=latents.device)
        alpha_bar = (
            0.5 * math.pi * torch.arange(M + 1, dtype=torch.float32, device=latents.device) / M / (C_2 + 1)
        ).sin() ** 2
        for j in range(M, 0, -1):
            u[j - 1] = ((u[j] ** 2 + 1) / (alpha_bar[j - 1] / alpha_bar[j]).clamp(min=C_1) - 1).sqrt()
        inside = u[(u >= sigma_min) & (u <= sigma_max)]
        sigmas = inside[((len(inside) - 1) * ramp).round().long()]
    else:
        low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        sigmas = (high + ramp * (low - high)) ** rho

    def sigma(t: Tensor) -> Tensor:
        if schedule == "vp":
            return vp_sigma(t, beta_d, beta_min)
        return t.sqrt() if schedule == "ve" else t

    def sigma_deriv(t: Tensor) -> Tensor:
        if schedule == "vp":
            return 0.5 * (beta_min + beta_d * t) * (sigma(t) + 1 / sigma(t))
        return 0.5 / t.sqrt() if schedule == "ve" else torch.ones_like(t)

    def sigma_inv(level: Tensor) -> Tensor:
        if schedule == "vp":
            return ((beta_min**2 + 2 * beta_d * torch.log1p(level**2)).sqrt() - beta_min) / beta_d
        return level**2 if schedule == "ve" else level

    def s(t: Tensor) -> Tensor:
        return 1 / (1 + sigma(t) ** 2).sqrt() if scaling == "vp" else torch.ones_like(t)

    def s_deriv(t: Tensor) -> Tensor:
        return -sigma(t) * sigma_deriv(t) * s(t) ** 3 if scaling == "vp" else torch.zeros_like(t)

    def slope(x: Tensor, t: Tensor) -> Tensor:
        denoised = net(x / s(t), sigma(t), class_labels).double()
        return (sigma_deriv(t) / sigma(t) + s_deriv(t) / s(t)) * x - sigma_deriv(t) * s(t) / sigma(t) * denoised

    t = torch.cat([sigma_inv(net.round_sigma(sigmas).double()), torch.zeros_like(sigmas[:1])])
    x = latents.double() * (sigma(t[0]) * s(t[0]))
    for step in range(num_steps):
        gamma = min(S_churn / num_steps, math.sqrt(2) - 1) if S_min <= sigma(t[step]) <= S_max else 0
        t_hat = sigma_inv(net.round_sigma(sigma(t[step]) * (1 + gamma)).double())
        # Without churn t_hat differs from t by the rounding of σ⁻¹(σ(t)) alone, whose root is no noise to add.
        added = (sigma(t_hat) ** 2 - sigma(t[step]) ** 2).clip(min=0).sqrt() if gamma > 0 else torch.zeros_like(t_hat)
        x_hat = s(t_hat) / s(t[step]) * x + added * s(t_hat) * S_noise * randn_like(x)

        h = t[step + 1] - t_hat
        d = slope(x_hat, t_hat)
        if solver == "euler" or step == num_steps - 1:
            x = x_hat + h * d
        else:
            d_prime = slope(x_hat + alpha * h * d, t_hat + alpha * h)
            x = x_hat + h * ((1 - 1 / (2 * alpha)) * d + 1 / (2 * alpha) * d_prime)
    return x
