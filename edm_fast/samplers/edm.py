"""The samplers of the EDM paper under their public names and signatures, executed as solver tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from edm_fast.samplers import arguments, schedules
from edm_fast.samplers.curves import Curve, LinearCurve, VECurve, fit_vp_curve, no_scaling, vp_scaling
from edm_fast.samplers.execution import execute
from edm_fast.samplers.guidance import guidance_of, guided
from edm_fast.samplers.solvers import SOLVERS, Churn, ode_table
from edm_fast.samplers.table import SolverTable

DISCRETIZATIONS = ("edm", "vp", "ve", "iddpm")
SCHEDULES = ("linear", "vp", "ve")
SCALINGS = ("none", "vp")


def edm_table(
    net: Any,
    *,
    device: torch.device | str | None = None,
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
) -> SolverTable:
    """The table of every sampler in the paper, for the noise levels that `net` accepts.

    Args:
        net: asked for sigma_min, sigma_max and round_sigma, and needs none of them.
        device: where round_sigma gets its tensors; by default where the network's parameters lie.
        num_steps: steps of the solver, 1 … 100,000.
        sigma_min, sigma_max: the lowest and highest noise level, clamped to the network's; by default those of the
            discretization: vp σ(ε_s) and σ(1), ve 0.02 and 100, iddpm 0.002 and 81, all others 0.002 and 80.
        rho: in "edm", σ^{1/ρ} is evenly spaced; in "polyexponential", the ramp of ln σ is raised to this power.
        solver: "heun" (second order, see `alpha`) or "euler".
        discretization: which noise levels: "edm", "vp" (t evenly spaced), "ve" (σ² geometric), "iddpm" (those of
            improved DDPM), "exponential" (ln σ evenly spaced) or "polyexponential".
        schedule: "linear" (σ = t), "vp" or "ve" (σ = √t).
        scaling: "none" (s = 1) or "vp" (s = 1/√(1+σ²)).
        epsilon_s: smallest t of the VP schedule, in (0, 1).
        C_1, C_2, M: constants of the iDDPM levels; C_1 in (0, 1], M in 1 … 100,000.
        alpha: parameter of the second-order solver, in (0, 1]; 1 is Heun's method, ½ the midpoint rule.
        S_churn, S_min, S_max, S_noise: see `Churn`; S_churn = 0 draws no noise.

    Raises:
        ValueError, TypeError: an argument out of range, named first; a range of levels that leaves float64.

    Source: Karras et al. 2022, table 1 and algorithms 1 to 3.
    """
    num_steps = arguments.check_count("num_steps", num_steps, arguments.MOST_STEPS)
    arguments.check_choice("solver", solver, SOLVERS)
    choices = (*DISCRETIZATIONS, "exponential", "polyexponential")
    arguments.check_choice("discretization", discretization, choices)
    arguments.check_choice("schedule", schedule, SCHEDULES)
    arguments.check_choice("scaling", scaling, SCALINGS)
    rho = arguments.check_positive("rho", rho)
    epsilon_s = arguments.check_positive("epsilon_s", epsilon_s)
    if epsilon_s >= 1:
        raise ValueError(f"epsilon_s: got {epsilon_s}; it must be below 1")
    alpha = arguments.check_positive("alpha", alpha)
    if alpha > 1:
        raise ValueError(f"alpha: got {alpha}; it must be in (0, 1]")
    churn = Churn(*arguments.check_churn(S_churn, S_min, S_max, S_noise))
    low, high = schedules.default_range(discretization, epsilon_s)
    low, high = arguments.check_sigma_range(
        low if sigma_min is None else sigma_min, high if sigma_max is None else sigma_max
    )
    low, high = arguments.clamp_to_net(low, high, net)
    C_1, C_2 = arguments.check_positive("C_1", C_1), arguments.check_positive("C_2", C_2)
    if C_1 > 1:
        raise ValueError(f"C_1: got {C_1}; it must be in (0, 1]")
    M = arguments.check_count("M", M, arguments.MOST_STEPS)

    sigmas = {
        "edm": lambda: schedules.edm_sigmas(num_steps, low, high, rho),
        "vp": lambda: schedules.vp_sigmas(num_steps, low, high, epsilon_s),
        "ve": lambda: schedules.ve_sigmas(num_steps, low, high),
        "iddpm": lambda: schedules.iddpm_sigmas(num_steps, low, high, C_1, C_2, M),
        "exponential": lambda: schedules.exponential_sigmas(num_steps, low, high),
        "polyexponential": lambda: schedules.polyexponential_sigmas(num_steps, low, high, rho),
    }[discretization]
    curves: dict[str, Callable[[], Curve]] = {
        "linear": LinearCurve,
        "ve": VECurve,
        "vp": lambda: fit_vp_curve(low, high, epsilon_s),
    }
    round_sigma = partial(_round, net, device if device is not None else arguments.net_device(net))
    try:
        levels = round_sigma(sigmas())
        arguments.check_levels(levels)
        curve = curves[schedule]()
        table = ode_table(
            levels.tolist(),
            solver,
            alpha=alpha,
            churn=churn,
            curve=curve,
            scaling=vp_scaling(curve) if scaling == "vp" else no_scaling(),
            round_sigma=round_sigma,
        )
    except (ArithmeticError, ValueError) as error:
        if str(error).startswith("sigma_min"):
            raise
        raise _unreachable(low, high, rho, schedule, scaling, str(error)) from None
    if not (np.isfinite(table.updates).all() and np.isfinite(table.sigma).all()):
        raise _unreachable(low, high, rho, schedule, scaling, "a coefficient is not finite")
    return table


def _unreachable(low: float, high: float, rho: float, schedule: str, scaling: str, reason: str) -> ValueError:
    return ValueError(
        f"sigma_min, sigma_max, rho: [{low:g}, {high:g}] with rho = {rho:g}, schedule {schedule!r} and scaling "
        f"{scaling!r} leave the range of float64: {reason}"
    )


def _round(net: Any, device: torch.device | str | None, sigma: np.ndarray) -> np.ndarray:
    """net.round_sigma, where there is one."""
    round_sigma = getattr(net, "round_sigma", None)
    if round_sigma is None:
        return sigma
    rounded = torch.as_tensor(round_sigma(torch.as_tensor(sigma, dtype=torch.float64, device=device)))
    return rounded.detach().to(device="cpu", dtype=torch.float64).numpy()


def edm_sampler(
    net: Any,
    latents: torch.Tensor,
    class_labels: arguments.Labels = None,
    randn_like: Callable[[torch.Tensor], torch.Tensor] = torch.randn_like,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
    S_churn: float = 0,
    S_min: float = 0,
    S_max: float = math.inf,
    S_noise: float = 1,
    *,
    guidance: float = 1,
    gnet: Any = None,
    guidance_interval: Sequence[float] = (0, math.inf),
) -> torch.Tensor:
    """Algorithm 2 of the EDM paper: stochastic sampling with Heun's method; deterministic for S_churn = 0.

    Args:
        net: any callable net(x, sigma, class_labels) → D(x; σ); x is float64 [N, C, H, W], sigma a float64 scalar.
            sigma_min, sigma_max and round_sigma are used if it has them.
        latents: standard normal [N, C, H, W], on the network's device; multiplied by the first noise level here.
        class_labels: rows [N, label_dim] (or one row for all), or integer ids [N] if the network has `label_dim`.
        randn_like: called at the start of every step, also where churn is off, with a float64 tensor of the state's
            shape on its device; the values in it mean nothing.
        num_steps: 1 gives a single Euler step; at most 100,000.
        sigma_min, sigma_max: clamped to the network's.
        rho: exponent of the time steps.
        S_churn: amount of churn over all steps; S_churn/num_steps is cut at √2-1.
        S_min, S_max: noise levels between which churn acts.
        S_noise: factor on the noise that churn adds.
        guidance, gnet, guidance_interval: as `sample` has them.

    Returns:
        float64 [N, C, H, W]. No gradients are recorded.

    Raises:
        ValueError, TypeError: an argument out of range, labels or latents that do not fit the network.
    """
    table_arguments = {
        "num_steps": num_steps,
        "sigma_min": sigma_min,
        "sigma_max": sigma_max,
        "rho": rho,
        "S_churn": S_churn,
        "S_min": S_min,
        "S_max": S_max,
        "S_noise": S_noise,
    }
    return _sample_table(net, latents, class_labels, randn_like, table_arguments, guidance, gnet, guidance_interval)


def ablation_sampler(
    net: Any,
    latents: torch.Tensor,
    class_labels: arguments.Labels = None,
    randn_like: Callable[[torch.Tensor], torch.Tensor] = torch.randn_like,
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
) -> torch.Tensor:
    """The paper's generalised sampler: any discretization, schedule σ(t), scaling s(t) and second-order solver.

    Args:
        net, latents, class_labels, randn_like: as `edm_sampler` has them.
        num_steps, sigma_min, sigma_max, rho, solver, schedule, scaling, epsilon_s, C_1, C_2, M, alpha, S_churn, S_min,
            S_max, S_noise: as `edm_table` has them.
        discretization: "edm", "vp", "ve" or "iddpm"; which noise levels.

    Returns:
        float64 [N, C, H, W]. No gradients are recorded.

    Raises:
        ValueError, TypeError: an argument out of range, labels or latents that do not fit the network.

    Where churn is off no noise is added. The public code adds what rounding leaves of σ(σ⁻¹(σ)), about 1e-8·σ, for the
    VP schedule even then.
    """
    table_arguments = {
        "num_steps": num_steps,
        "sigma_min": sigma_min,
        "sigma_max": sigma_max,
        "rho": rho,
        "solver": arguments.check_choice("solver", solver, SOLVERS),
        "discretization": arguments.check_choice("discretization", discretization, DISCRETIZATIONS),
        "schedule": schedule,
        "scaling": scaling,
        "epsilon_s": epsilon_s,
        "C_1": C_1,
        "C_2": C_2,
        "M": M,
        "alpha": alpha,
        "S_churn": S_churn,
        "S_min": S_min,
        "S_max": S_max,
        "S_noise": S_noise,
    }
    return _sample_table(net, latents, class_labels, randn_like, table_arguments)


def _sample_table(
    net: Any,
    latents: torch.Tensor,
    class_labels: arguments.Labels,
    randn_like: Callable[[torch.Tensor], torch.Tensor],
    table_arguments: dict[str, Any],
    guidance: float = 1,
    gnet: Any = None,
    guidance_interval: Sequence[float] = (0, math.inf),
) -> torch.Tensor:
    arguments.check_network("net", net)
    latents = arguments.check_latents(latents, net)
    if not callable(randn_like):
        raise TypeError(f"randn_like: got {randn_like!r}; it is a function of a tensor")
    rows: Any = class_labels
    label_dim = getattr(net, "label_dim", None)
    if class_labels is not None and label_dim is not None:
        rows = arguments.label_rows(class_labels, latents.shape[0], label_dim, latents.device, broadcast=True)
    asked = guidance_of(net, rows, guidance, gnet, guidance_interval)
    table = edm_table(net, device=latents.device, **table_arguments)
    with torch.no_grad():
        evaluation, guide = guided(net, asked, table, rows, latents.device, torch.float64)
    return execute(table, evaluation, latents, randn_like=randn_like, guide=guide)
