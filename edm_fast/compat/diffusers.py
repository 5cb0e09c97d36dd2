"""Algorithm 2 of the EDM paper as schedulers for the pipelines of diffusers.

A pipeline evaluates its network, then calls `step`, and neither knows of churn. So a step here ends with the churn of
the next one: the sample that it returns lies at the noise level s_i of the evaluation that comes next, and `timesteps`
are ln(s_i)/4. With steps i = 0 … N-1 from σ_i to σ_{i+1}, σ_N = 0, and γ_i as S_churn gives it:

    s_i = (1 + γ_i) σ_i,  y = x + √(s_i² - σ_i²) S_noise z,  z ~ N(0, I)      at the end of the step before
    d = (y - D(y; s_i)) / s_i,  x' = y + (σ_{i+1} - s_i) d                    first evaluation; with Euler x = x'
    d' = (x' - D(x'; σ_{i+1})) / σ_{i+1},  x = y + (σ_{i+1} - s_i) (d + d')/2   Heun's second, but for the last step

Karras et al. 2022, arXiv 2206.00364. All of it is a solver table, of which `step` executes a row.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edm_fast.ops.solver_step import solver_step
from edm_fast.samplers import arguments, schedules
from edm_fast.samplers.solvers import Churn, ode_table
from edm_fast.samplers.table import SolverTable, X, Z

# When it loads a pipeline, diffusers looks for the base classes in this module, under these names.
try:
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from diffusers.utils import BaseOutput
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise ImportError(
        f"edm_fast.compat.diffusers needs the package diffusers, which cannot be imported ({error}): "
        "pip install 'edm-fast[diffusers]'"
    ) from error

__all__ = ["EDMEulerScheduler", "EDMHeunScheduler", "EDMSchedulerOutput"]

logger = logging.getLogger(__name__)

Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class EDMSchedulerOutput(BaseOutput):
    """What a step gives.

    Attributes:
        prev_sample: the sample at the noise level of the next evaluation, with its churn; at the end the image.
        pred_original_sample: D(x; σ) of this evaluation.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class EDMScheduler(SchedulerMixin, ConfigMixin):
    """What `EDMHeunScheduler` and `EDMEulerScheduler` share: all but the solver.

    The pipeline's network is EDM's F: D(x; σ) = c_skip x + c_out F(c_in x; ln(σ)/4) with c_skip = σ_d²/(σ² + σ_d²),
    c_out = σ σ_d/√(σ² + σ_d²), c_in = 1/√(σ² + σ_d²).

    Args:
        sigma_min, sigma_max: range of the noise levels.
        sigma_data: σ_d, the standard deviation of the data.
        sigma_schedule: "karras" (the paper's) or "exponential" (geometric).
        num_train_timesteps: length of the scheduler and, before `set_timesteps`, of `timesteps`.
        prediction_type: "epsilon" for F as above, "v_prediction" for a network that gives -F.
        rho: exponent of the "karras" levels.
        final_sigmas_type: "zero"; the last step goes to σ = 0.
        S_churn: amount of churn over all steps; S_churn/N is cut at √2-1. 0 is deterministic.
        S_min, S_max: noise levels between which churn acts; None is no upper limit.
        S_noise: factor on the noise that churn adds.

    Raises ValueError or TypeError for an argument out of range, naming it.
    """

    order: int
    _solver: str
    _step_index: int | None
    _begin_index: int | None
    _kept: torch.Tensor | None

    @register_to_config
    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        sigma_schedule: str = "karras",
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        rho: float = 7.0,
        final_sigmas_type: str = "zero",
        S_churn: float = 0.0,
        S_min: float = 0.0,
        S_max: float | None = None,
        S_noise: float = 1.0,
    ) -> None:
        arguments.check_sigma_range(sigma_min, sigma_max)
        arguments.check_positive("sigma_data", sigma_data)
        arguments.check_positive("rho", rho)
        arguments.check_choice("sigma_schedule", sigma_schedule, ("karras", "exponential"))
        arguments.check_choice("prediction_type", prediction_type, ("epsilon", "v_prediction"))
        arguments.check_choice("final_sigmas_type", final_sigmas_type, ("zero",))
        self._churn = Churn(*arguments.check_churn(S_churn, S_min, math.inf if S_max is None else S_max, S_noise))
        if S_max == math.inf:
            self.register_to_config(S_max=None)  # JSON has no infinity
        self.num_inference_steps: int | None = None
        self._table: SolverTable | None = None
        self._start_std = float(sigma_max)
        self._given_std: float | None = None
        self._restart(self._levels("num_train_timesteps", num_train_timesteps), None)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the sample before the first evaluation, the churn of the first step included."""
        self._given_std = self._start_std
        return self._start_std

    @property
    def step_index(self) -> int | None:
        """Index of the next evaluation; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first evaluation, if `set_begin_index` gave one."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the run at this evaluation, the first of a step: a multiple of `order`."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | np.ndarray | torch.Tensor | None = None,
    ) -> None:
        """Prepare a run of N steps: N evaluations by Euler's method, 2N-1 by Heun's. The run before is forgotten.

        Args:
            num_inference_steps: N.
            device: where `timesteps` lie.
            sigmas: noise levels to step through in place of the schedule's, falling; a 0 may follow the last.
        """
        if sigmas is None:
            levels = self._levels("num_inference_steps", num_inference_steps)
        else:
            levels = _given_levels(sigmas, num_inference_steps)
        table = ode_table(levels.tolist(), self._solver, churn=self._churn)
        sigma_data = self.config.sigma_data
        variance = table.sigma**2 + sigma_data**2
        c_out = table.sigma * sigma_data / np.sqrt(variance)
        rows = table.rows(
            c_skip=sigma_data**2 / variance,
            c_out=c_out if self.config.prediction_type == "epsilon" else -c_out,
            c_in=np.ones_like(variance),
        )
        self.num_inference_steps = table.num_steps
        self._table, self._rows = table, torch.from_numpy(rows)
        start = table.updates[0, 0]
        self._start_std = math.hypot(start @ X, start @ Z)
        self._restart(table.sigma, device)

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """c_in x, the network's input. Draws nothing and changes nothing, so a doubled batch may pass."""
        sigma = self._sigma[self._next_index(timestep)]
        self._scaled = True
        return sample / math.hypot(sigma, self.config.sigma_data)

    @torch.no_grad()
    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> EDMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """From one evaluation to the next.

        Args:
            model_output: F, of the sample's shape.
            timestep: one of `timesteps`; only the first call of a run looks at it.
            sample: the point of this evaluation [N, …], floating point. Arithmetic is float64.
            generator: gives the noise, drawn only where churn acts; a list holds one per sample.
            return_dict: False gives the tuple (prev_sample, pred_original_sample).

        Returns:
            Tensors of the sample's shape, dtype and device. No gradients are recorded.

        Raises:
            ValueError, TypeError: `set_timesteps` has not been called, the run is over, the timestep is none of
                `timesteps`, or tensors do not fit one another.
        """
        table = self._table
        if table is None:
            raise ValueError("num_inference_steps: not known yet; call set_timesteps before step")
        for name, tensor in (("model_output", model_output), ("sample", sample)):
            if not (isinstance(tensor, torch.Tensor) and tensor.is_floating_point()):
                got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
                raise TypeError(f"{name}: got {got}; it is a floating-point tensor [N, …]")
        index = self._next_index(timestep)
        if not self._scaled:
            logger.warning("scale_model_input was not called before step: the network's input must be its result")
            self._scaled = True
        if self._kept is not None and self._kept.shape != sample.shape:
            raise ValueError(f"sample: shape is {tuple(sample.shape)}; the step began with {tuple(self._kept.shape)}")
        if self._rows.device != sample.device:
            self._rows = self._rows.to(sample.device)

        new_x, new_kept = table.updates[index + 1, :2]
        state = [sample.to(torch.float64, copy=True, memory_format=torch.contiguous_format)]
        if self._kept is not None:
            state.append(self._kept)
        elif new_kept.any():
            state.append(torch.empty_like(state[0]))
        prev_sample, denoised = (torch.empty_like(sample, memory_format=torch.contiguous_format) for _ in range(2))
        solver_step(
            state,
            self._rows,
            index + 1,
            model_output=model_output,
            noise=_noise_like(sample, generator) if new_x @ Z != 0 else None,
            net_input=prev_sample,
            denoised=denoised,
        )
        self._kept = state[1] if new_kept.any() else None
        self._step_index = index + 1
        return EDMSchedulerOutput(prev_sample, denoised) if return_dict else (prev_sample, denoised)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """y + σ z, with σ of each sample's timestep; where a begin index is set, σ of the next evaluation."""
        if self._begin_index is None:
            indices = [self._indices(timestep)[0] for timestep in timesteps]
        else:
            indices = [self._begin_index if self._step_index is None else self._step_index] * len(timesteps)
        sigma = self.sigmas[indices].to(device=original_samples.device, dtype=original_samples.dtype)
        return original_samples + noise * sigma.reshape(-1, *[1] * (original_samples.dim() - 1))

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def _levels(self, name: str, count: Any) -> np.ndarray:
        count = arguments.check_count(name, count, arguments.MOST_STEPS)
        low, high = self.config.sigma_min, self.config.sigma_max
        if self.config.sigma_schedule == "exponential":
            return schedules.exponential_sigmas(count, low, high)
        return schedules.edm_sigmas(count, low, high, self.config.rho)

    def _restart(self, sigma: np.ndarray, device: str | torch.device | None) -> None:
        """Stand before the first of the evaluations at these noise levels."""
        self._sigma: list[float] = sigma.tolist()
        self.sigmas = torch.tensor([*self._sigma, 0.0], dtype=torch.float32)
        self.timesteps = torch.tensor(np.log(sigma) / 4, dtype=torch.float32, device=device)
        self._step_index = None
        self._begin_index = None
        self._kept = None
        self._scaled = False

    def _next_index(self, timestep: float | torch.Tensor) -> int:
        """Index of the next evaluation. The first call of a run finds it, by the begin index or by the timestep."""
        if self._step_index is None:
            self._step_index = self._first_index(timestep)
        if self._step_index >= len(self._sigma):
            raise ValueError(f"timestep: all {len(self._sigma)} evaluations are done; set_timesteps begins a new run")
        return self._step_index

    def _first_index(self, timestep: float | torch.Tensor) -> int:
        if self._begin_index is None:
            index = next((index for index in self._indices(timestep) if self._begins_step(index)), None)
            if index is None:
                raise ValueError(f"timestep: got {timestep}, a second evaluation; a run begins at the first of a step")
        else:
            index = self._begin_index
            if not (0 <= index < len(self._sigma) and self._begins_step(index)):
                wanted = f"a multiple of {self.order} below {len(self._sigma)}"
                raise ValueError(f"begin_index: got {index}; a run begins at the first evaluation of a step, {wanted}")
        given = self._given_std
        unfit = given is not None and not math.isclose(given, self._start_std, rel_tol=1e-6)
        if index == 0 and unfit and self._table is not None:
            raise ValueError(
                f"init_noise_sigma: was {given:g} when it was last read, before set_timesteps, and is "
                f"{self._start_std:g}; read it after set_timesteps, or keep churn from step 0 (S_max < sigma_max)"
            )
        return index

    def _indices(self, timestep: float | torch.Tensor) -> list[int]:
        """The evaluations at a timestep: two where a Heun step ends and the next begins without churn."""
        wanted = torch.as_tensor(timestep, dtype=torch.float32, device=self.timesteps.device)
        found: list[int] = (self.timesteps == wanted).nonzero().flatten().tolist()
        if not found:
            raise ValueError(f"timestep: got {timestep}; it is one of the scheduler's timesteps, ln(sigma)/4")
        return found

    def _begins_step(self, index: int) -> bool:
        return self._table is None or index == 0 or bool(self._table.step[index] != self._table.step[index - 1])


class EDMHeunScheduler(EDMScheduler):
    """Algorithm 2 as published, by Heun's method: 2N-1 evaluations for N steps. `EDMScheduler` has the arguments."""

    order = 2
    _solver = "heun"


class EDMEulerScheduler(EDMScheduler):
    """Algorithm 2 by Euler's method: N evaluations for N steps. `EDMScheduler` has the arguments.

    It takes the configuration of diffusers' scheduler of this name. That one starts from √(sigma_max² + 1) and adds
    churn after the network's evaluation, so that the network sees too low a noise level.
    """

    order = 1
    _solver = "euler"


def _given_levels(sigmas: Any, num_inference_steps: int | None) -> np.ndarray:
    if isinstance(sigmas, torch.Tensor) and (sigmas.is_complex() or sigmas.dtype == torch.bool):
        raise TypeError(f"sigmas: dtype is {sigmas.dtype}; noise levels are real numbers")
    try:
        levels = torch.as_tensor(sigmas, dtype=torch.float64).detach().cpu().numpy()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"sigmas: got {sigmas!r}; a sequence of noise levels is needed ({error})") from None
    if levels.ndim == 1 and len(levels) > 1 and levels[-1] == 0:
        levels = levels[:-1]
    falling = levels.ndim == 1 and len(levels) > 0 and np.isfinite(levels).all() and (np.diff(levels) <= 0).all()
    if not (falling and levels[-1] > 0):
        raise ValueError(f"sigmas: got {sigmas}; they are noise levels, positive, finite and falling")
    if num_inference_steps is not None and num_inference_steps != len(levels):
        raise ValueError(f"sigmas: {len(levels)} noise levels; num_inference_steps is {num_inference_steps}")
    return levels


def _noise_like(sample: torch.Tensor, generator: Generators) -> torch.Tensor:
    """Standard normal; drawn as float32 for half precision, so that it is not rounded twice."""
    if isinstance(generator, list) and len(generator) not in (1, sample.shape[0]):
        raise ValueError(f"generator: a list of {len(generator)}; the batch has {sample.shape[0]} samples")
    dtype = torch.float64 if sample.dtype == torch.float64 else torch.float32
    noise: torch.Tensor = randn_tensor(tuple(sample.shape), generator=generator, device=sample.device, dtype=dtype)
    return noise
