"""The loop that executes a solver table: evaluate the network, run one kernel, and so on to the last row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from edm_fast.ops.solver_step import solver_step
from edm_fast.samplers.evaluation import Evaluation, checked_output
from edm_fast.samplers.guidance import Guide
from edm_fast.samplers.replay import Run, is_captured, replay_steps
from edm_fast.samplers.table import SolverTable


@dataclass(frozen=True)
class Progress:
    """What a callback sees, once per step, after the step's first evaluation.

    Attributes:
        step, num_steps: index of the step, and how many there are.
        sigma: noise level of the evaluation, after churn.
        x: the point of evaluation, in the state's dtype, before the step's update.
        denoised: D(x/s; σ), in the state's dtype.
    """

    step: int
    num_steps: int
    sigma: float
    x: torch.Tensor
    denoised: torch.Tensor


Callback = Callable[[Progress], object]


@torch.no_grad()
def execute(
    table: SolverTable,
    evaluation: Evaluation,
    latents: torch.Tensor,
    *,
    state_dtype: torch.dtype = torch.float64,
    seeds: torch.Tensor | None = None,
    randn_like: Callable[[torch.Tensor], torch.Tensor] | None = None,
    output_dtype: torch.dtype | None = None,
    callback: Callback | None = None,
    guide: Guide | None = None,
    first_bad: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Run the table from `latents` (standard normal, [N, …]) and return the samples.

    Args:
        evaluation: the network.
        state_dtype: float64 or float32; the dtype of the state and of all arithmetic between evaluations.
        seeds: int64 [N]; noise is ours, by seed, and drawn only where a row uses it.
        randn_like: noise is the caller's: called at the start of every step, used or not, with a tensor of the state's
            shape, dtype and device; the values in it mean nothing.
        output_dtype: dtype of the result; the state's if not given.
        callback: called once per step.
        guide: a second network and its weight at each evaluation.
        first_bad: int64 [N], lowered to k + 1 where evaluation k is the first with a D that is not finite.
        backend: of `solver_step`.

    Raises:
        ValueError, TypeError: the network or `randn_like` returned what does not fit the state, by its name.

    Whatever the network or the callback raises is passed on.
    """
    device = latents.device
    state = [latents.detach().to(state_dtype, copy=True, memory_format=torch.contiguous_format)]
    state += [torch.empty_like(state[0]) for _ in range(table.registers - 1)]
    if latents.shape[0] == 0:
        return state[0].to(output_dtype or state_dtype)
    second = None if guide is None else (guide.weight, guide.evaluation.c_skip, guide.evaluation.c_out)
    coefficients = table.rows(evaluation.c_skip, evaluation.c_out, evaluation.c_in, guide=second)
    rows = torch.from_numpy(coefficients).to(device)
    net_input = torch.empty_like(state[0], dtype=evaluation.input_dtype, memory_format=evaluation.input_format)
    last = table.evaluations
    model_output: torch.Tensor | None = None
    guide_output: torch.Tensor | None = None

    def report(index: int, x: torch.Tensor, denoised: torch.Tensor) -> None:
        assert callback is not None
        callback(Progress(int(table.step[index]), table.num_steps, float(table.sigma[index]), x, denoised))

    run: Run | None = None
    row = 0
    while True:
        observed = callback is not None and row > 0 and (row == 1 or table.step[row - 1] != table.step[row - 2])
        denoised = torch.empty_like(state[0]) if observed else None
        x = state[0].clone() if observed else None
        next_input: torch.Tensor | None = net_input
        if row == last:
            next_input = torch.empty_like(state[0], dtype=output_dtype) if output_dtype is not None else None
        elif evaluation.owns_input and row > 0:
            next_input = torch.empty_like(net_input)
        noise = None
        if randn_like is not None and table.entered[row] >= 0:
            noise = checked_output(randn_like(state[0]), state[0], "randn_like")
        solver_step(
            state,
            rows,
            row,
            model_output=model_output,
            guide_output=guide_output,
            seeds=seeds,
            noise=noise,
            net_input=next_input,
            denoised=denoised,
            first_bad=first_bad,
            backend=backend,
        )
        if x is not None and denoised is not None:
            report(row - 1, x, denoised)
        if row == last:
            return state[0] if next_input is None else next_input
        assert next_input is not None
        net_input = next_input
        if row == 0 and randn_like is None and backend is None and is_captured(evaluation, net_input):
            # The memory of a captured step is not the callback's to keep.
            observer = None if callback is None else lambda index, x, d: report(index, x.clone(), d.clone())
            run = Run(table, evaluation, guide, rows, seeds, observer, first_bad)
        if run is not None:
            row += replay_steps(run, row, state, net_input)
        guide_output = None
        if guide is not None and guide.takes_part(row):
            # A network may write to its input, and return memory that its next call writes again: both may be one.
            foreign = evaluation.owns_input or guide.evaluation.owns_input
            guide_output = guide.evaluation(net_input.clone() if foreign else net_input, row)
            guide_output = guide_output.clone() if foreign else guide_output
        model_output = evaluation(net_input, row)
        row += 1
