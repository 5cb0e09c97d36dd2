"""The noise schedule σ(t) and the scaling s(t) of the probability-flow ODE (Karras et al. 2022, equation 4).

    dx = [ (σ'/σ + s'/s) x - (σ' s / σ) D(x/s; σ) ] dt

All functions take and give Python floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

VP_BETA_D = 19.9
VP_BETA_MIN = 0.1


class Curve(Protocol):
    """σ(t), its derivative and its inverse."""

    def sigma(self, t: float) -> float: ...
    def sigma_derivative(self, t: float) -> float: ...
    def time(self, sigma: float) -> float: ...


class LinearCurve:
    """σ(t) = t."""

    def sigma(self, t: float) -> float:
        return t

    def sigma_derivative(self, t: float) -> float:
        return 1.0

    def time(self, sigma: float) -> float:
        return sigma


class VECurve:
    """σ(t) = √t."""

    def sigma(self, t: float) -> float:
        return math.sqrt(t)

    def sigma_derivative(self, t: float) -> float:
        return 0.5 / math.sqrt(t)

    def time(self, sigma: float) -> float:
        return sigma**2


@dataclass(frozen=True)
class VPCurve:
    """σ(t) = √(exp(½ β_d t² + β_min t) - 1)."""

    beta_d: float
    beta_min: float

    def sigma(self, t: float) -> float:
        return math.sqrt(math.expm1(0.5 * self.beta_d * t**2 + self.beta_min * t))

    def sigma_derivative(self, t: float) -> float:
        sigma = self.sigma(t)
        return 0.5 * (self.beta_min + self.beta_d * t) * (sigma + 1 / sigma)

    def time(self, sigma: float) -> float:
        root = math.sqrt(self.beta_min**2 + 2 * self.beta_d * math.log1p(sigma**2))
        return (root - self.beta_min) / self.beta_d


def fit_vp_curve(sigma_min: float, sigma_max: float, epsilon_s: float) -> VPCurve:
    """The VP curve with σ(ε_s) = σ_min and σ(1) = σ_max."""
    low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
    beta_d = 2 * (low / epsilon_s - high) / (epsilon_s - 1)
    return VPCurve(beta_d, high - 0.5 * beta_d)


@dataclass(frozen=True)
class Scaling:
    """s as a function of t, and s'."""

    scale: Callable[[float], float]
    scale_derivative: Callable[[float], float]


def no_scaling() -> Scaling:
    """s(t) = 1."""
    return Scaling(lambda t: 1.0, lambda t: 0.0)


def vp_scaling(curve: Curve) -> Scaling:
    """s(t) = 1/√(1 + σ(t)²), which keeps the variance; s' = -σ σ' s³."""

    def scale(t: float) -> float:
        return 1 / math.sqrt(1 + curve.sigma(t) ** 2)

    def scale_derivative(t: float) -> float:
        return -curve.sigma(t) * curve.sigma_derivative(t) * scale(t) ** 3

    return Scaling(scale, scale_derivative)
