"""Every deterministic solver of the library on every sequence of noise levels, at a given number of evaluations.

All start at σ_max = 80 (iDDPM's at the highest of its fixed levels below it), step to 0.002 (iDDPM's to its own lowest)
and end with one evaluation there, so that their solutions are those of one problem and their errors compare. Not here
are samplers that draw noise, whose results are no solutions of the ODE, and what is the same under another name:
k-diffusion's Euler and Heun, the schedulers of diffusers, and the levels "ve", which are the exponential ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from edm_fast.compat.k_diffusion import multistep, one_step, sample_dpm_adaptive
from edm_fast.compat.k_diffusion.dpm_solver import dpm_fast_table
from edm_fast.samplers import edm_table, schedules
from edm_fast.samplers.evaluation import evaluation_of
from edm_fast.samplers.execution import execute
from edm_fast.samplers.solvers import Churn, ode_table
from edm_fast.samplers.table import SolverTable

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
OWN = "its own"
# Tolerances of the adaptive solver, relative; the absolute one keeps k-diffusion's proportion to it.
TOLERANCES = (0.2, 0.05, 0.01, 2e-3, 5e-4)
_ABSOLUTE = 0.0078 / 0.05

Levels = Callable[[int], np.ndarray]
LEVELS: dict[str, Levels] = {
    "edm, ρ = 7": lambda n: schedules.edm_sigmas(n, SIGMA_MIN, SIGMA_MAX, 7),
    "vp": lambda n: schedules.vp_sigmas(n, SIGMA_MIN, SIGMA_MAX),
    "exponential (ve)": lambda n: schedules.exponential_sigmas(n, SIGMA_MIN, SIGMA_MAX),
    "polyexponential, ρ = 0.7": lambda n: schedules.polyexponential_sigmas(n, SIGMA_MIN, SIGMA_MAX, 0.7),
    "polyexponential, ρ = 1.4": lambda n: schedules.polyexponential_sigmas(n, SIGMA_MIN, SIGMA_MAX, 1.4),
    "iddpm (cosine)": lambda n: schedules.iddpm_sigmas(n, SIGMA_MIN, SIGMA_MAX),
}
EDM = next(iter(LEVELS))

# σ(t) and s(t) other than σ = t, s = 1, with the levels of the paper's table 1 and with EDM's.
CURVES: dict[str, dict[str, str]] = {
    "VP of the paper: vp levels, σ(t), s(t)": {"discretization": "vp", "schedule": "vp", "scaling": "vp"},
    "VE of the paper: ve levels, σ(t)": {"discretization": "ve", "schedule": "ve"},
    "edm levels, vp σ(t), s(t)": {"discretization": "edm", "schedule": "vp", "scaling": "vp"},
    "edm levels, ve σ(t)": {"discretization": "edm", "schedule": "ve"},
}


class Problem:
    """A network with latents and labels; `calls` counts its evaluations, of all samples at once.

    Args:
        net: D(x; σ); a prepared network runs by its plan, as in `edm_fast.sample`.
        latents: standard normal [N, C, H, W], float64.
        labels: rows [N, label_dim], or None.
    """

    def __init__(self, net: Any, latents: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        self.net, self.latents, self.labels = net, latents, labels
        self.calls = 0

    def run(self, table: SolverTable, scale: float = 1.0) -> torch.Tensor:
        """The table's result from `scale` times the latents, float64."""
        device = self.latents.device
        evaluation = evaluation_of(self.net, table, self.labels, device, torch.float64)
        return execute(table, _Counted(evaluation, self), self.latents * scale)

    def denoise(self, x: torch.Tensor, sigma: Any, **_: Any) -> torch.Tensor:
        """D(x; σ) in float64."""
        self.calls += 1
        with torch.no_grad():
            return self.net(x, torch.as_tensor(sigma, dtype=torch.float64), self.labels).double()


class _Counted:
    """An evaluation that counts its calls in the problem."""

    def __init__(self, evaluation: Any, problem: Problem) -> None:
        self._evaluation, self._problem = evaluation, problem

    def __getattr__(self, name: str) -> Any:
        return getattr(self._evaluation, name)

    def __call__(self, net_input: torch.Tensor, index: int) -> torch.Tensor:
        self._problem.calls += 1
        return self._evaluation(net_input, index)


@dataclass(frozen=True)
class Method:
    """A solver on noise levels.

    Attributes:
        solve: the solution for a budget: a number of evaluations, or a tolerance.
        start: σ of the first level.
        budgets: what to solve with; None: the numbers of evaluations that are asked for.
    """

    solver: str
    levels: str
    solve: Callable[[Problem, Any], torch.Tensor] = field(repr=False)
    start: Callable[[Any], float] = field(default=lambda _: SIGMA_MAX, repr=False)
    budgets: tuple[float, ...] | None = None


def steps_of(evaluations: int, each: int) -> int:
    """Steps of `each` evaluations, of which the last takes one, that make up the number; ValueError if none do."""
    steps, rest = divmod(evaluations + each - 1, each)
    if rest or steps < 1:
        raise ValueError(f"evaluations: got {evaluations}; steps of {each} and a last one of 1 do not make them up")
    return steps


def methods() -> Iterator[Method]:
    """All of them."""
    for levels, make in LEVELS.items():
        for solver, (each, _) in _ON_LEVELS.items():
            yield _on_levels(solver, levels, make, each)
    for curve, options in CURVES.items():
        for solver in ("euler", "heun"):
            yield _on_curve(solver, curve, options)
    yield Method("dpm_fast", OWN, _dpm_fast)
    for order in (2, 3):
        yield Method(f"dpm_adaptive, order {order}", OWN, _dpm_adaptive(order), budgets=TOLERANCES)


def _second_order(alpha: float) -> Callable[[list[float]], SolverTable]:
    """The table of `ablation_sampler` with σ(t) = t, for x at the first level and not for latents."""

    def table(levels: list[float]) -> SolverTable:
        made = ode_table(levels[:-1], "heun", alpha=alpha)
        made.updates[0] /= levels[0]
        return made

    return table


_ON_LEVELS: dict[str, tuple[int, Callable[[list[float]], SolverTable]]] = {
    "euler": (1, lambda levels: one_step.churned_table("euler", levels, Churn())),
    "heun": (2, _second_order(1)),
    "alpha = 2/3": (2, _second_order(2 / 3)),
    "alpha = 1/2": (2, _second_order(0.5)),
    "dpm_2": (2, lambda levels: one_step.churned_table("dpm_2", levels, Churn())),
    "dpmpp_2s": (2, lambda levels: one_step.ancestral_table("dpmpp_2s", levels, 0, 1)),
    "dpmpp_2m": (1, multistep.dpmpp_2m_table),
    "lms, order 2": (1, lambda levels: multistep.lms_table(levels, 2)),
    "lms, order 3": (1, lambda levels: multistep.lms_table(levels, 3)),
    "lms, order 4": (1, lambda levels: multistep.lms_table(levels, 4)),
}
SOLVERS = (*_ON_LEVELS, "dpm_fast", "dpm_adaptive, order 2", "dpm_adaptive, order 3")


def solve_on(problem: Problem, solver: str, sigmas: np.ndarray) -> torch.Tensor:
    """The solution by a solver of levels, over the given ones and then 0."""
    levels = sigmas.tolist()
    return problem.run(_ON_LEVELS[solver][1]([*levels, 0.0]), levels[0])


def reference_solution(problem: Problem, sigmas: np.ndarray) -> torch.Tensor:
    """By Adams-Bashforth's method of order 4 to the last of the levels, and D there.

    In its own step to 0 the method extrapolates a cubic far beyond its nodes, the farther the closer they are, which
    multiplies what float32 leaves in the last slopes: 1,000 steps of the digits' network lose 0.02 % by it, and 2,000
    steps 0.4 %. All other solvers end with D.
    """
    levels = sigmas.tolist()
    return problem.denoise(problem.run(multistep.lms_table(levels, 4), levels[0]), levels[-1])


def _on_levels(solver: str, levels: str, make: Levels, each: int) -> Method:
    def solve(problem: Problem, evaluations: int) -> torch.Tensor:
        return solve_on(problem, solver, make(steps_of(evaluations, each)))

    return Method(solver, levels, solve, start=lambda evaluations: float(make(steps_of(evaluations, each))[0]))


def _on_curve(solver: str, curve: str, options: dict[str, str]) -> Method:
    def solve(problem: Problem, evaluations: int) -> torch.Tensor:
        steps = steps_of(evaluations, 2 if solver == "heun" else 1)
        bounds: dict[str, Any] = {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX}
        return problem.run(edm_table(problem.net, num_steps=steps, solver=solver, **bounds, **options))

    return Method(solver, curve, solve)


def _dpm_fast(problem: Problem, evaluations: int) -> torch.Tensor:
    """It ends at σ_min, with that much noise in it: the last evaluation takes that away, as in all the others."""
    table = dpm_fast_table(SIGMA_MAX, SIGMA_MIN, evaluations - 1, 0, 1)
    return problem.denoise(problem.run(table, SIGMA_MAX), SIGMA_MIN)


def _dpm_adaptive(order: int) -> Callable[[Problem, float], torch.Tensor]:
    def solve(problem: Problem, tolerance: float) -> torch.Tensor:
        x = sample_dpm_adaptive(
            problem.denoise,
            problem.latents * SIGMA_MAX,
            SIGMA_MIN,
            SIGMA_MAX,
            order=order,
            rtol=tolerance,
            atol=tolerance * _ABSOLUTE,
            disable=True,
        )
        return problem.denoise(x, SIGMA_MIN)

    return solve
