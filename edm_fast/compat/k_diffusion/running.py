"""The loop that runs a table on any model(x, σ as [N], **extra_args) → D, with k-diffusion's callback.

One `solver_step` stands between two evaluations. A network of this library is run by its raw output F, as
`edm_fast.samplers` does it; any other model is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from edm_fast.compat.k_diffusion.checks import check_x
from edm_fast.compat.k_diffusion.noise import Noise
from edm_fast.ops.solver_step import solver_step
from edm_fast.plan import Prepared
from edm_fast.samplers.arguments import check_latents, label_rows
from edm_fast.samplers.evaluation import checked_output, evaluation_of, is_plain_precond
from edm_fast.samplers.execution import Progress, execute
from edm_fast.samplers.table import SolverTable

Model = Callable[..., torch.Tensor]
Callback = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class Request:
    """What every sampler is given: the model and its extra arguments, x, the callback, and tqdm's `disable`."""

    model: Model
    x: torch.Tensor
    extra_args: Mapping[str, Any]
    callback: Callback | None
    disable: bool | None

    @property
    def state_dtype(self) -> torch.dtype:
        """Of the state and of all arithmetic between evaluations; x in 16 bits is rounded where the model sees it."""
        return torch.float64 if self.x.dtype == torch.float64 else torch.float32

    @property
    def layout(self) -> torch.memory_format:
        """Of what the model sees and of the result: channels-last if x is so, else contiguous."""
        last = self.x.dim() == 4 and self.x.is_contiguous(memory_format=torch.channels_last)
        return torch.channels_last if last and not self.x.is_contiguous() else torch.contiguous_format

    def new_x(self) -> torch.Tensor:
        return torch.empty_like(self.x, memory_format=self.layout)

    def new_state(self, registers: int) -> list[torch.Tensor]:
        """x in the first register; the others are not filled."""
        state = [self.x.detach().to(self.state_dtype, copy=True, memory_format=torch.contiguous_format)]
        return state + [torch.empty_like(state[0]) for _ in range(registers - 1)]

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return checked_output(self.model(x, sigma, **self.extra_args), x, "model")

    def sigma_rows(self, table: SolverTable) -> torch.Tensor:
        """[E, N]: σ of each evaluation in x's dtype, once per sample."""
        sigmas = torch.tensor(table.sigma, dtype=self.x.dtype, device=self.x.device)
        return sigmas[:, None].repeat(1, self.x.shape[0])

    def rows(self, table: SolverTable) -> torch.Tensor:
        """The table's rows for a model that returns D."""
        ones = np.ones(table.evaluations)
        return torch.from_numpy(table.rows(0 * ones, ones, ones)).to(self.x.device)


def request_of(
    model: Any, x: Any, extra_args: Mapping[str, Any] | None, callback: Any, disable: bool | None
) -> Request:
    if not callable(model):
        raise TypeError(f"model: got {type(model).__name__}; it is a function of x and sigma")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: got {callback!r}; it is a function of a dict")
    if extra_args is not None and not isinstance(extra_args, Mapping):
        raise TypeError(f"extra_args: got {extra_args!r}; it is a dict of arguments for the model")
    return Request(model, check_x(x), dict(extra_args or {}), callback, disable)


def run(
    request: Request,
    table: SolverTable,
    noise: Noise,
    describe: Callable[[int, float], dict[str, Any]],
    count_evaluations: bool = False,
) -> torch.Tensor:
    """The samples, in x's dtype.

    describe: what the callback is told about step i, whose first evaluation is at sigma_hat, beyond x and denoised.
    count_evaluations: the progress bar counts evaluations, not steps.
    """
    if request.x.shape[0] == 0:
        return request.x.clone()
    total = table.evaluations if count_evaluations else table.num_steps
    with torch.no_grad(), tqdm(total=total, disable=request.disable) as bar:
        if _is_ours(request):
            return _run_network(request, table, noise, describe, bar, count_evaluations)
        return _run_model(request, table, noise, describe, bar, count_evaluations)


def _run_model(
    request: Request,
    table: SolverTable,
    noise: Noise,
    describe: Callable[[int, float], dict[str, Any]],
    bar: Any,
    count_evaluations: bool,
) -> torch.Tensor:
    state, rows, sigmas = request.new_state(table.registers), request.rows(table), request.sigma_rows(table)
    last = table.evaluations
    denoised: torch.Tensor | None = None
    for row in range(last + 1):
        entered = int(table.entered[row])
        drawn = noise.draw(entered) if noise.draw is not None and entered >= 0 else None
        x = request.new_x()  # the model and the callback may keep it
        solver_step(state, rows, row, model_output=denoised, seeds=noise.seeds, noise=drawn, net_input=x)
        if row == last:
            break
        step = int(table.step[row])
        denoised = request.denoise(x, sigmas[row])
        if request.callback is not None and (row == 0 or table.step[row - 1] != step):
            before = _version(x)
            request.callback({"x": x, "denoised": denoised, **describe(step, float(table.sigma[row]))})
            if before is None or _version(x) != before:
                state[0].copy_(x)
        if count_evaluations or row + 1 == last or table.step[row + 1] != step:
            bar.update()
    return x


def _version(x: torch.Tensor) -> int | None:
    """Changes whenever x is written to; None in inference mode, which keeps no count."""
    return None if x.is_inference() else x._version


def _is_ours(request: Request) -> bool:
    """A network of this library, asked for nothing that its raw output does not give."""
    known = isinstance(request.model, Prepared) or is_plain_precond(request.model)
    return known and set(request.extra_args) <= {"class_labels"}


def _run_network(
    request: Request,
    table: SolverTable,
    noise: Noise,
    describe: Callable[[int, float], dict[str, Any]],
    bar: Any,
    count_evaluations: bool,
) -> torch.Tensor:
    net: Any = request.model
    x = request.x
    try:
        check_latents(x, net)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("latents", "x", 1)) from None
    labels = label_rows(request.extra_args.get("class_labels"), x.shape[0], net.label_dim, x.device, broadcast=True)
    evaluation = evaluation_of(net, table, labels, x.device, request.state_dtype)
    evaluations_of_step = np.bincount(table.step).tolist()

    def observe(progress: Progress) -> None:
        if request.callback is not None:
            known = {"x": progress.x.to(x.dtype), "denoised": progress.denoised.to(x.dtype)}
            request.callback({**known, **describe(progress.step, progress.sigma)})
        bar.update(evaluations_of_step[progress.step] if count_evaluations else 1)

    draw = noise.draw
    entered: Iterator[int] = iter(table.entered[table.entered >= 0].tolist())
    return execute(
        table,
        evaluation,
        x,
        state_dtype=request.state_dtype,
        seeds=noise.seeds,
        randn_like=None if draw is None else lambda state: draw(next(entered)),
        output_dtype=x.dtype,
        callback=observe if request.callback is not None or not bar.disable else None,
    )
