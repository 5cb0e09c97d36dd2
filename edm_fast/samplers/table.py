"""A sampler as a table of coefficients: one row per network evaluation, and a first row that makes the first input.

Every sampler here is linear in the state, the denoised images D and noise, with coefficients known before the run. A
solver writes its equations with linear forms: numpy vectors of six coefficients over (r0, r1, r2, r3, D, z), where r0
is the point x of the evaluation, r1 … r3 are what earlier rows kept, and z is standard normal noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edm_fast.ops.solver_step import (
    DENOISED_FROM_GUIDE,
    DENOISED_FROM_MODEL,
    DENOISED_FROM_STATE,
    DRAW,
    NET_INPUT_SCALE,
    REGISTERS,
    ROW_SIZE,
    UPDATE,
    UPDATE_TERMS,
)

LinearForm = np.ndarray

_BASIS = np.eye(UPDATE_TERMS)
X: LinearForm = _BASIS[0]
KEPT: tuple[LinearForm, ...] = tuple(_BASIS[1:REGISTERS])
D: LinearForm = _BASIS[REGISTERS]
Z: LinearForm = _BASIS[REGISTERS + 1]


@dataclass(frozen=True)
class SolverTable:
    """What a sampler does, for any network.

    Row 0 turns the latents (r0) into the first point of evaluation; row k = 1 … E follows evaluation k-1.

    Attributes:
        updates: float64 [E+1, 4, 6]; the new registers as linear forms.
        sigma, t, scale: float64 [E]; noise level, time of the ODE and s(t) at each evaluation. The network sees x/s.
        step: int [E]; the step that an evaluation belongs to.
        entered: int [E+1]; the step whose churn a row adds at its end, or -1.
        num_steps: number of steps.
    """

    updates: np.ndarray
    sigma: np.ndarray
    t: np.ndarray
    scale: np.ndarray
    step: np.ndarray
    entered: np.ndarray
    num_steps: int

    @property
    def evaluations(self) -> int:
        """Number of network evaluations, E."""
        return len(self.sigma)

    @property
    def registers(self) -> int:
        """How many registers the rows use."""
        written = np.any(self.updates != 0, axis=(0, 2))
        return 1 + int(np.max(np.nonzero(written)[0], initial=0))

    def rows(
        self,
        c_skip: np.ndarray,
        c_out: np.ndarray,
        c_in: np.ndarray,
        output_scale: float = 1.0,
        guide: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    ) -> np.ndarray:
        """The rows that `solver_step` executes, float64 [E+1, 32], for a network with D = c_skip·x/s +
        c_out·F(c_in·x/s).

        c_skip, c_out, c_in: float64 [E]. The last row, after which there is no input to make, scales by `output_scale`.
        guide: w, c_skip and c_out of a second network G with the same c_in; then D = w·D(F) + (1 − w)·D(G).
        """
        rows = np.zeros([self.evaluations + 1, ROW_SIZE])
        weight = np.ones(self.evaluations)
        if guide is not None:
            weight, guide_skip, guide_out = guide
            # Where w is 1 the guide has no part, whatever its coefficients are.
            part = np.where(weight == 1, 0.0, 1 - weight)
            rows[1:, DENOISED_FROM_STATE] = part * np.where(part == 0, 0.0, guide_skip) / self.scale
            rows[1:, DENOISED_FROM_GUIDE] = part * np.where(part == 0, 0.0, guide_out)
        rows[1:, DENOISED_FROM_STATE] += weight * c_skip / self.scale
        rows[1:, DENOISED_FROM_MODEL] = weight * c_out
        rows[:, UPDATE:NET_INPUT_SCALE] = self.updates.reshape(len(rows), -1)
        rows[:-1, NET_INPUT_SCALE] = c_in / self.scale
        rows[-1, NET_INPUT_SCALE] = output_scale
        # Draw 0 is the latents; draw i + 1 belongs to step i whether or not it is used.
        rows[:, DRAW] = self.entered + 1
        return rows


class TableBuilder:
    """Collects rows while a solver runs through its equations.

    Use: `start(form)`, then in turn `evaluate(…)` and `update(…)`; `finish()` gives the table.
    """

    def __init__(self) -> None:
        self._updates: list[np.ndarray] = []
        self._entered: list[int] = []
        self._points: list[tuple[float, float, float, int]] = []

    def start(self, x: LinearForm, entered: int = -1) -> None:
        """The first point of evaluation, as a form of the latents (X) and of noise (Z) if it enters a churned step."""
        self._append(x, (), entered)

    def evaluate(self, sigma: float, t: float, scale: float, step: int) -> None:
        """The network is evaluated at X/scale and `sigma`."""
        self._points.append((sigma, t, scale, step))

    def update(self, x: LinearForm, keep: Sequence[LinearForm] = (), entered: int = -1) -> None:
        """After the evaluation: the next point, and forms that later rows find again as KEPT[0], KEPT[1], …"""
        self._append(x, keep, entered)

    def finish(self) -> SolverTable:
        """The table of all rows so far, one more of them than evaluations. ValueError before the first evaluation."""
        sigma, t, scale, step = zip(*self._points, strict=True)
        return SolverTable(
            updates=np.stack(self._updates),
            sigma=np.array(sigma),
            t=np.array(t),
            scale=np.array(scale),
            step=np.array(step),
            entered=np.array(self._entered),
            num_steps=max(step) + 1,
        )

    def _append(self, x: LinearForm, keep: Sequence[LinearForm], entered: int) -> None:
        update = np.zeros([REGISTERS, UPDATE_TERMS])
        for register, form in enumerate([x, *keep]):
            update[register] = form
        self._updates.append(update)
        self._entered.append(entered)


def whole_steps(table: SolverTable) -> tuple[int, int]:
    """(steps, evaluations in each): the leading steps that are alike, without the one of the last evaluation."""
    step = table.step.tolist()
    each, count = step.count(step[0]), 0
    while (count + 1) * each < len(step):
        first = count * each
        if len(set(step[first : first + each])) != 1 or step[first + each] == step[first]:
            break
        count += 1
    return count, each
