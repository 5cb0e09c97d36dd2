"""Tables of the samplers that remember nothing from one step to the next; see `edm_fast.samplers.table`.

σ is the time of the ODE, and its slope is d = (x - D)/σ. `levels` are the noise levels with, usually, a last one of 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from edm_fast.samplers.solvers import Churn
from edm_fast.samplers.table import KEPT, D, LinearForm, SolverTable, TableBuilder, X, Z


def toward(x: LinearForm, denoised: LinearForm, start: float, end: float) -> LinearForm:
    """The ODE from `start` to `end` if D stays what it is: x keeps the share end/start. It is Euler's step too."""
    share = end / start
    return share * x + (1 - share) * denoised


def ancestral_levels(start: float, end: float, eta: float) -> tuple[float, float]:
    """(down, up) with down² + up² = end²: the level to step down to, and that of the noise to add there.

    eta = 1 is the posterior of x at `end` given x at `start`, eta = 0 the ODE; `up` never exceeds `end`.
    """
    if eta == 0:
        return end, 0.0
    up = min(end, eta * end * math.sqrt(max(start**2 - end**2, 0.0)) / start)
    return math.sqrt(max(end**2 - up**2, 0.0)), up


def churned_table(solver: str, levels: Sequence[float], churn: Churn) -> SolverTable:
    """Algorithm 2 of Karras et al. 2022 by Euler's, Heun's or the midpoint rule ("dpm_2", middle in ln σ)."""
    num_steps = len(levels) - 1
    raised = [sigma * (1 + churn.gamma(sigma, num_steps)) for sigma in levels[:-1]]
    builder = TableBuilder()

    def with_churn(x: LinearForm, step: int) -> LinearForm:
        variance = raised[step] ** 2 - levels[step] ** 2
        return x + math.sqrt(variance) * churn.S_noise * Z if raised[step] > levels[step] else x

    builder.start(with_churn(X, 0), entered=0)
    for step in range(num_steps):
        start, end = raised[step], levels[step + 1]
        _evaluate(builder, start, step)
        if solver == "euler" or end == 0:
            x_next = toward(X, D, start, end)
        elif solver == "heun":
            half = (end - start) / 2
            slope = (X - D) / start
            builder.update(X + 2 * half * slope, keep=[X + half * slope])
            _evaluate(builder, end, step)
            x_next = KEPT[0] + half * (X - D) / end
        else:
            middle = math.sqrt(start * end)
            builder.update(toward(X, D, start, middle), keep=[X])
            _evaluate(builder, middle, step)
            x_next = KEPT[0] + (end - start) * (X - D) / middle
        if step + 1 < num_steps:
            builder.update(with_churn(x_next, step + 1), entered=step + 1)
        else:
            builder.update(x_next)
    return builder.finish()


def ancestral_table(solver: str, levels: Sequence[float], eta: float, s_noise: float) -> SolverTable:
    """Steps of the ODE down to `down`, then noise up to the next level: by Euler's rule, the midpoint rule on the slope
    ("dpm_2") or that on D ("dpmpp_2s", DPM-Solver++(2S) of Lu et al. 2022), middle in ln σ.

    Noise number i belongs to step i, and there is none after a step to 0.
    """
    builder = TableBuilder()
    builder.start(X)
    for step, (start, end) in enumerate(itertools.pairwise(levels)):
        down, up = ancestral_levels(start, end, eta)
        _evaluate(builder, start, step)
        if solver == "euler" or down == 0:
            x_next = toward(X, D, start, down)
        else:
            middle = math.sqrt(start * down)
            share = down / start
            builder.update(toward(X, D, start, middle), keep=[X if solver == "dpm_2" else share * X])
            _evaluate(builder, middle, step)
            moved = (down - start) * (X - D) / middle if solver == "dpm_2" else (1 - share) * D
            x_next = KEPT[0] + moved
        if end > 0:
            builder.update(x_next + up * s_noise * Z, entered=step)
        else:
            builder.update(x_next)
    return builder.finish()


def dpmpp_sde_table(levels: Sequence[float], eta: float, s_noise: float, r: float, one_path: bool) -> SolverTable:
    """DPM-Solver++ for the SDE, with a second evaluation at the share r of the way in ln σ.

    Noises number 2i and 2i + 1 belong to step i: one from the start to the middle, one for the rest of the way if
    `one_path`, so that both parts make up the noise of the whole; otherwise one for the whole way.
    """
    builder = TableBuilder()
    builder.start(X)
    for step, (start, end) in enumerate(itertools.pairwise(levels)):
        _evaluate(builder, start, step)
        if end == 0:
            builder.update(D)
            continue
        middle = start * (end / start) ** r
        weight = 1 / (2 * r)
        down, up = ancestral_levels(start, middle, eta)
        whole_down, whole_up = ancestral_levels(start, end, eta)
        share = whole_down / start
        kept = share * X + (1 - share) * (1 - weight) * D
        noise = whole_up * s_noise
        if one_path:
            # A Brownian path in σ: its increments add up, and their variances are the lengths of the ways.
            part = min((start - middle) / (start - end), 1.0)
            kept = kept + noise * math.sqrt(part) * Z
            noise *= math.sqrt(1 - part)
        builder.update(toward(X, D, start, down) + up * s_noise * Z, keep=[kept], entered=2 * step)
        _evaluate(builder, middle, step)
        builder.update(KEPT[0] + (1 - share) * weight * D + noise * Z, entered=2 * step + 1)
    return builder.finish()


def _evaluate(builder: TableBuilder, sigma: float, step: int) -> None:
    builder.evaluate(sigma, sigma, 1.0, step)
