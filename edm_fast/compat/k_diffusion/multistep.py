"""Tables of the multistep samplers: one evaluation per step, and what earlier ones gave is kept in the registers.

`levels` are the noise levels with, usually, a last one of 0; a step to 0 ends at D.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from edm_fast.compat.k_diffusion.one_step import toward
from edm_fast.samplers.table import KEPT, D, LinearForm, SolverTable, TableBuilder, X, Z

MAX_LMS_ORDER = 1 + len(KEPT)


def lms_table(levels: Sequence[float], order: int) -> SolverTable:
    """Adams-Bashforth: x moves by the integral over the step of the polynomial in σ through the latest slopes."""
    builder = TableBuilder()
    builder.start(X)
    for step, end in enumerate(levels[1:]):
        sigma = levels[step]
        builder.evaluate(sigma, sigma, 1.0, step)
        known = min(step + 1, order)
        slopes = [(X - D) / sigma, *KEPT[: known - 1]]
        weights = _integrals([levels[step - j] for j in range(known)], sigma, end)
        x_next = X + sum(weight * slope for weight, slope in zip(weights, slopes, strict=True))
        builder.update(x_next, keep=slopes[: order - 1])
    return builder.finish()


def _integrals(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """∫ over [start, end] of each Lagrange polynomial on the nodes, by a Gauss rule that is exact for their degree."""
    points, gauss_weights = np.polynomial.legendre.leggauss(len(nodes))
    half = (end - start) / 2
    at = start + half * (1 + points)
    integrals = []
    for node in nodes:
        others = [other for other in nodes if other != node]
        basis = np.prod([(at - other) / (node - other) for other in others], axis=0) * np.ones_like(at)
        integrals.append(float(half * gauss_weights @ basis))
    return integrals


def dpmpp_2m_table(levels: Sequence[float]) -> SolverTable:
    """DPM-Solver++(2M): D extrapolated to the middle of the step in ln σ."""
    builder = TableBuilder()
    builder.start(X)
    h_last = 0.0
    for step, (start, end) in enumerate(itertools.pairwise(levels)):
        builder.evaluate(start, start, 1.0, step)
        denoised: LinearForm = D
        if end > 0:
            h = math.log(start / end)
            if step > 0:
                denoised = D + h / (2 * h_last) * (D - KEPT[0])
            h_last = h
        builder.update(toward(X, denoised, start, end), keep=[D])
    return builder.finish()


def dpmpp_2m_sde_table(levels: Sequence[float], eta: float, s_noise: float, solver_type: str) -> SolverTable:
    """DPM-Solver++(2M) for the SDE; D is a line in ln σ, taken in the middle ("midpoint") or exactly ("heun")."""
    builder = TableBuilder()
    builder.start(X)
    h_last = 0.0
    for step, (start, end) in enumerate(itertools.pairwise(levels)):
        builder.evaluate(start, start, 1.0, step)
        if end == 0:
            builder.update(D, keep=[D])
            continue
        h = math.log(start / end)
        x_next, moved, span = _exponential_step(start, end, h, eta)
        if step > 0:
            weight = moved / 2 if solver_type == "midpoint" else 1 - moved / span
            x_next = x_next + weight * h / h_last * (D - KEPT[0])
        _with_noise(builder, x_next, end, h, eta, s_noise, [D], step)
        h_last = h
    return builder.finish()


def dpmpp_3m_sde_table(levels: Sequence[float], eta: float, s_noise: float) -> SolverTable:
    """DPM-Solver++(3M) for the SDE: D is a parabola in ln σ through three evaluations (a line in the second step).

    Of the parabola's square term half is taken, as k-diffusion does.
    """
    builder = TableBuilder()
    builder.start(X)
    h_1 = h_2 = 0.0
    for step, (start, end) in enumerate(itertools.pairwise(levels)):
        builder.evaluate(start, start, 1.0, step)
        keep = [D] if step == 0 else [D, KEPT[0]]
        if end == 0:
            builder.update(D, keep=keep)
            continue
        h = math.log(start / end)
        x_next, moved, span = _exponential_step(start, end, h, eta)
        phi_2 = 1 - moved / span
        phi_3 = phi_2 / span - 0.5
        # Divided differences in units of h.
        slope = h / h_1 * (D - KEPT[0]) if step > 0 else 0 * X
        if step == 1:
            x_next = x_next + phi_2 * slope
        elif step > 1:
            older = h / h_2 * (KEPT[0] - KEPT[1])
            curvature = h / (h_1 + h_2) * (slope - older)
            x_next = x_next + phi_2 * (slope + h_1 / h * curvature) - phi_3 * curvature
        _with_noise(builder, x_next, end, h, eta, s_noise, keep, step)
        h_1, h_2 = h, h_1
    return builder.finish()


def _exponential_step(start: float, end: float, h: float, eta: float) -> tuple[LinearForm, float, float]:
    """The SDE from `start` to `end` if D stays what it is; the share 1 - e^{-span} that D gets; span = h (1 + eta)."""
    span = h * (1 + eta)
    moved = -math.expm1(-span)
    return end / start * math.exp(-eta * h) * X + moved * D, moved, span


def _with_noise(
    builder: TableBuilder,
    x_next: LinearForm,
    end: float,
    h: float,
    eta: float,
    s_noise: float,
    keep: Sequence[LinearForm],
    step: int,
) -> None:
    """Noise number `step`, for the part of the variance at `end` that is not left of the start; none for eta = 0."""
    if eta == 0:
        builder.update(x_next, keep=keep)
    else:
        noise = end * math.sqrt(-math.expm1(-2 * eta * h)) * s_noise
        builder.update(x_next + noise * Z, keep=keep, entered=step)
