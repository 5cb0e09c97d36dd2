"""DPM-Solver with step sizes chosen on the way: each trial is a table of one step, and what it errs by is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from edm_fast.compat.k_diffusion.dpm_solver import stochastic_end, trial_table
from edm_fast.compat.k_diffusion.noise import Noise
from edm_fast.compat.k_diffusion.running import Request
from edm_fast.ops.solver_step import DRAW, NET_INPUT_SCALE, ROW_SIZE, UPDATE, UPDATE_TERMS, solver_step

# The last step is done when it ends this close to the end, in ln σ.
_CLOSE = 1e-5


@dataclass
class StepSize:
    """A PID controller of the step's length h in ln σ.

    h is multiplied by 1 + atan(f - 1) with f = e₀^{(P+I+D)/k} e₁^{-(P+2D)/k} e₂^{D/k}, where e₀ is 1/error of this
    trial, e₁ and e₂ are those of the last two accepted ones and k is the order; a factor below `accept_safety` rejects.
    """

    h: float
    pcoeff: float
    icoeff: float
    dcoeff: float
    order: float
    accept_safety: float
    _accepted: tuple[float, float] | None = None

    def accept(self, error: float) -> bool:
        inverse = 1 / (error + 1e-8)
        last, before = self._accepted or (inverse, inverse)
        f = inverse ** ((self.pcoeff + self.icoeff + self.dcoeff) / self.order)
        f *= last ** (-(self.pcoeff + 2 * self.dcoeff) / self.order) * before ** (self.dcoeff / self.order)
        factor = 1 + math.atan(f - 1)
        accepted = factor >= self.accept_safety
        self._accepted = (inverse, last) if accepted else (last, before)
        self.h *= factor
        return accepted


@dataclass
class Counts:
    """What `return_info` gives."""

    steps: int = 0
    nfe: int = 0
    n_accept: int = 0
    n_reject: int = 0

    def as_dict(self) -> dict[str, int]:
        return dict(vars(self))


@dataclass
class AdaptiveRun:
    """A run from sigma_max to sigma_min (or upwards, if that is greater).

    ways: noise levels between which noise number k lies, for those drawn so far.
    """

    request: Request
    sigma_max: float
    sigma_min: float
    order: int
    rtol: float
    atol: float
    eta: float
    s_noise: float
    noise: Noise
    ways: list[tuple[torch.Tensor, torch.Tensor]]
    step_size: StepSize
    counts: Counts = field(default_factory=Counts)

    @torch.no_grad()
    def run(self) -> torch.Tensor:
        t, t_end = -math.log(self.sigma_max), -math.log(self.sigma_min)
        forward = t_end > t
        x = self.request.new_state(1)[0]
        before = x  # the lower order's x at the last accepted step
        with tqdm(disable=self.request.disable) as bar:
            while t < t_end - _CLOSE if forward else t > t_end + _CLOSE:
                t_next = (min if forward else max)(t_end, t + self.step_size.h)
                if t_next == t:
                    raise FloatingPointError(f"model: no step from sigma {self._sigma(t):g} on meets rtol and atol")
                sigma, sigma_next = self._sigma(t), self._sigma(t_next)
                target, up = stochastic_end(sigma, sigma_next, self.sigma_min, self.eta)
                state, denoised = self._trial(x, sigma, target, bar)
                low = state[0] - state[1]
                error = self._error(state[1], low, before)
                accepted = self.step_size.accept(error)
                if accepted:
                    x, before = state[0], low
                    self._add_noise(x, sigma, sigma_next, up)
                    t = t_next
                    self.counts.n_accept += 1
                else:
                    self.counts.n_reject += 1
                self.counts.steps += 1
                self.counts.nfe += self.order
                if self.request.callback is not None:
                    self.request.callback(self._report(x, denoised, t, error))
        return self._rounded(x)

    def _sigma(self, t: float) -> float:
        """The given ends are met exactly: what rounding leaves between two levels would be taken for noise."""
        ends = {-math.log(self.sigma_max): self.sigma_max, -math.log(self.sigma_min): self.sigma_min}
        return ends.get(t, math.exp(-t))

    def _trial(self, x: torch.Tensor, start: float, end: float, bar: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
        """One step from x: the registers after it, x and its difference first, and D at its start."""
        request, table = self.request, trial_table(self.order, start, end)
        rows, sigmas = request.rows(table), request.sigma_rows(table)
        state = [x.clone(), *(torch.empty_like(x) for _ in range(table.registers - 1))]
        denoised: torch.Tensor | None = None
        first: torch.Tensor | None = None
        for row in range(table.evaluations):
            net_input = request.new_x()
            solver_step(state, rows, row, model_output=denoised, net_input=net_input)
            denoised = request.denoise(net_input, sigmas[row])
            if row == 0:
                first = denoised.clone()  # a model may write its next result to the same memory
            bar.update()
        solver_step(state, rows, table.evaluations, model_output=denoised)
        assert first is not None
        return state, first

    def _error(self, difference: torch.Tensor, low: torch.Tensor, before: torch.Tensor) -> float:
        """Root mean square of the difference between the orders, in units of what is tolerated; 1 is acceptable."""
        tolerated = (self.rtol * torch.maximum(low.abs(), before.abs())).clamp(min=self.atol)
        error = float(torch.linalg.vector_norm(difference / tolerated)) / math.sqrt(low.numel())
        if not math.isfinite(error):
            raise FloatingPointError("model: gave NaN or infinity, and no step size can be chosen")
        return error

    def _add_noise(self, x: torch.Tensor, sigma: float, sigma_next: float, up: float) -> None:
        """x + up·s_noise·z, noise number n_accept. A noise sampler is asked whether or not it is used."""
        number = self.counts.n_accept
        self.ways.append((self._scalar(sigma), self._scalar(sigma_next)))
        drawn = None if self.noise.draw is None else self.noise.draw(number)
        scale = up * self.s_noise
        if scale == 0:
            return
        row = np.zeros([1, ROW_SIZE])
        row[0, UPDATE], row[0, UPDATE + UPDATE_TERMS - 1] = 1, scale
        row[0, NET_INPUT_SCALE], row[0, DRAW] = 1, number + 1
        solver_step([x], torch.from_numpy(row).to(x.device), 0, seeds=self.noise.seeds, noise=drawn)

    def _report(self, x: torch.Tensor, denoised: torch.Tensor, t: float, error: float) -> dict[str, Any]:
        time, sigma = self._scalar(t), self._scalar(self._sigma(t))
        return {
            "x": self._rounded(x).clone(),
            "i": self.counts.steps - 1,
            "sigma": sigma,
            "sigma_hat": sigma,
            "t": time,
            "t_up": time,
            "denoised": denoised,
            "error": self._scalar(error),
            "h": self.step_size.h,
            **self.counts.as_dict(),
        }

    def _scalar(self, value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.get_default_dtype(), device=self.request.x.device)

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        """In x's dtype and layout."""
        return x.to(dtype=self.request.x.dtype, memory_format=self.request.layout)
