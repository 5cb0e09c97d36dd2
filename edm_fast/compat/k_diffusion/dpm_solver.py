"""Steps of DPM-Solver of orders 1 to 3 (Lu et al. 2022, arXiv 2206.00927), and the table of a run of fixed length.

Time is t = -ln σ, and ε = (x - D)/σ is integrated: a step from σ = a to b has the length h = ln(a/b).
"""

from __future__ import annotations

import math

from edm_fast.compat.k_diffusion.one_step import ancestral_levels
from edm_fast.samplers.table import KEPT, D, LinearForm, SolverTable, TableBuilder, X, Z


def dpm_solver_step(
    builder: TableBuilder, order: int, start: float, end: float, step: int, embedded: bool = False
) -> tuple[LinearForm, LinearForm]:
    """The evaluations of one step, and what follows the last of them: x at the end, and by how much it differs from
    that of one order less. The difference is summed by itself, as it is much smaller than either.

    `embedded`: keep what the difference needs; without it only x is to be used. Order 1 has none.
    """
    h = math.log(start / end)
    epsilon = (X - D) / start
    first = X + (end - start) * epsilon

    def evaluate(sigma: float) -> None:
        builder.evaluate(sigma, sigma, 1.0, step)

    evaluate(start)
    if order == 1:
        return first, 0 * X
    ratio = 1 / 2 if order == 2 else 1 / 3
    sigma_1 = start * (end / start) ** ratio
    weight = (end - start) / (2 * ratio)
    second = first - weight * epsilon
    x_1 = X + (sigma_1 - start) * epsilon
    if order == 2:
        builder.update(x_1, keep=[second, -weight * epsilon] if embedded else [second])
        evaluate(sigma_1)
        epsilon_1 = (X - D) / sigma_1
        return KEPT[0] + weight * epsilon_1, KEPT[1] + weight * epsilon_1
    ratio_2 = 2 / 3
    sigma_2 = start * (end / start) ** ratio_2
    weight_2 = ratio_2 / ratio * (sigma_2 - (start - sigma_2) / (ratio_2 * h))
    weight_3 = (end - (start - end) / h) / ratio_2
    bases = [X + (sigma_2 - start - weight_2) * epsilon, first - weight_3 * epsilon]
    builder.update(x_1, keep=[*bases, (weight - weight_3) * epsilon] if embedded else bases)
    evaluate(sigma_1)
    epsilon_1 = (X - D) / sigma_1
    difference = [KEPT[2] - weight * epsilon_1] if embedded else []
    builder.update(KEPT[0] + weight_2 * epsilon_1, keep=[KEPT[1], *difference])
    evaluate(sigma_2)
    epsilon_2 = (X - D) / sigma_2
    return KEPT[0] + weight_3 * epsilon_2, KEPT[1] + weight_3 * epsilon_2


def stochastic_end(start: float, end: float, sigma_end: float, eta: float) -> tuple[float, float]:
    """(σ where the ODE's step ends, level of the noise that leads from there to `end`); never beyond `sigma_end`."""
    if eta == 0:
        return end, 0.0
    target = max(ancestral_levels(start, end, eta)[0], sigma_end)
    return target, math.sqrt(max(end**2 - target**2, 0.0))


def fast_levels(sigma_max: float, sigma_min: float, n: int) -> tuple[list[float], list[int]]:
    """Noise levels evenly spaced in ln σ, and the orders of the steps between them: n evaluations in all."""
    orders = [3] * (n // 3 - 1) + [2, 1] if n % 3 == 0 else [3] * (n // 3) + [n % 3]
    ratio = sigma_min / sigma_max
    return [*(sigma_max * ratio ** (i / len(orders)) for i in range(len(orders))), sigma_min], orders


def dpm_fast_table(sigma_max: float, sigma_min: float, n: int, eta: float, s_noise: float) -> SolverTable:
    """Steps of order 3, with a last one or two of less so that there are n evaluations; noise number i after step i."""
    levels, orders = fast_levels(sigma_max, sigma_min, n)
    builder = TableBuilder()
    builder.start(X)
    for step, order in enumerate(orders):
        target, up = stochastic_end(levels[step], levels[step + 1], levels[-1], eta)
        x_next, _ = dpm_solver_step(builder, order, levels[step], target, step)
        builder.update(x_next + up * s_noise * Z, entered=step)
    return builder.finish()


def trial_table(order: int, start: float, end: float) -> SolverTable:
    """A single step whose last row leaves x at the end in r0, and its difference from that of one order less in r1."""
    builder = TableBuilder()
    builder.start(X)
    x_end, difference = dpm_solver_step(builder, order, start, end, 0, embedded=True)
    builder.update(x_end, keep=[difference])
    return builder.finish()
