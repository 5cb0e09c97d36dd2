"""Solvers of the probability-flow ODE with churn, written as equations over linear forms (see `table`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edm_fast.samplers.curves import Curve, LinearCurve, Scaling, no_scaling
from edm_fast.samplers.table import KEPT, D, LinearForm, SolverTable, TableBuilder, X, Z

SOLVERS = ("heun", "euler")

_MAX_GAMMA = math.sqrt(2) - 1


@dataclass(frozen=True)
class Churn:
    """The stochastic part of algorithm 2: noise is raised by γ = min(S_churn/n, √2-1) while S_min ≤ σ ≤ S_max.

    S_churn/n above √2-1 counts as √2-1, as in the paper. S_churn = 0 switches churn off.
    """

    S_churn: float = 0
    S_min: float = 0
    S_max: float = math.inf
    S_noise: float = 1

    def gamma(self, sigma: float, num_steps: int) -> float:
        """γ of a step that starts at σ, of `num_steps`: churn raises σ to (1 + γ)·σ. 0 outside [S_min, S_max]."""
        return min(self.S_churn / num_steps, _MAX_GAMMA) if self.S_min <= sigma <= self.S_max else 0.0


def ode_table(
    sigmas: Sequence[float],
    solver: str = "heun",
    *,
    alpha: float = 1,
    churn: Churn | None = None,
    curve: Curve | None = None,
    scaling: Scaling | None = None,
    round_sigma: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> SolverTable:
    """Euler's or the second-order method with parameter α, over the noise levels `sigmas` and then 0.

    With d the slope at (x̂, t̂) and h = t_{i+1} - t̂, a second-order step is

        x' = x̂ + αh d,   t' = t̂ + αh,   x = x̂ + h ((1 - 1/(2α)) d + 1/(2α) d')

    (α = 1 is Heun's method, α = ½ the midpoint rule); the last step is Euler's. Before each step churn moves (x, t) to
    (x̂, t̂). Karras et al. 2022, algorithms 1 to 3.

    Args:
        sigmas: decreasing noise levels, already rounded to what the network accepts.
        solver: "heun" (second order) or "euler".
        alpha: in (0, 1].
        churn: none by default.
        curve, scaling: σ(t) and s(t); σ = t and s = 1 by default.
        round_sigma: nearest noise levels that the network accepts, for an array of them.
    """
    churn = churn or Churn()
    curve = curve or LinearCurve()
    scaling = scaling or no_scaling()
    num_steps = len(sigmas)
    times = [curve.time(sigma) for sigma in sigmas] + [0.0]
    levels = [curve.sigma(t) for t in times[:-1]]
    gammas = [churn.gamma(sigma, num_steps) for sigma in levels]
    raised = round_sigma(np.array([sigma * (1 + gamma) for sigma, gamma in zip(levels, gammas, strict=True)]))
    churned_times = [curve.time(sigma) for sigma in raised.tolist()]
    builder = TableBuilder()

    def slope(x: LinearForm, denoised: LinearForm, t: float) -> LinearForm:
        sigma, sigma_d = curve.sigma(t), curve.sigma_derivative(t)
        s, s_d = scaling.scale(t), scaling.scale_derivative(t)
        return (sigma_d / sigma + s_d / s) * x - (sigma_d * s / sigma) * denoised

    def with_churn(x: LinearForm, step: int) -> LinearForm:
        t, t_hat = times[step], churned_times[step]
        s, s_hat = scaling.scale(t), scaling.scale(t_hat)
        # Without churn the two times differ by the rounding of an inverted σ(t), which is no noise to add.
        variance = curve.sigma(t_hat) ** 2 - levels[step] ** 2 if gammas[step] > 0 else 0.0
        return s_hat / s * x + math.sqrt(max(variance, 0)) * s_hat * churn.S_noise * Z

    x_0 = levels[0] * scaling.scale(times[0]) * X
    builder.start(with_churn(x_0, 0), entered=0)
    for step in range(num_steps):
        t_hat = churned_times[step]
        h = times[step + 1] - t_hat
        builder.evaluate(curve.sigma(t_hat), t_hat, scaling.scale(t_hat), step)
        d = slope(X, D, t_hat)
        last = step == num_steps - 1
        if last or solver == "euler":
            x_next = X + h * d
        else:
            t_prime = t_hat + alpha * h
            builder.update(X + alpha * h * d, keep=[X + h * (1 - 1 / (2 * alpha)) * d])
            builder.evaluate(curve.sigma(t_prime), t_prime, scaling.scale(t_prime), step)
            x_next = KEPT[0] + h / (2 * alpha) * slope(X, D, t_prime)
        if last:
            builder.update(x_next)
        else:
            builder.update(with_churn(x_next, step + 1), entered=step + 1)
    return builder.finish()
