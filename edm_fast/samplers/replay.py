"""Sampling by replays: the evaluations of a step and the kernels between them, captured as one CUDA graph.

All that differs between steps, tables and batches lies in device memory and is copied there before the first replay:
state, coefficient rows, seeds, modulation rows and the index of the step. So one capture serves every table whose steps
have as many evaluations, and the host does nothing between steps but launch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch

from edm_fast.ops.solver_step import ROW_SIZE, solver_step
from edm_fast.plan.device import DevicePlan
from edm_fast.plan.graphs import Capture, is_capturing, on_device
from edm_fast.plan.steps import StepTable
from edm_fast.samplers.evaluation import Evaluation, PlanEvaluation
from edm_fast.samplers.table import SolverTable, whole_steps

# Called with the index of a step's first evaluation, x and D there; both are written again by the next step.
Observer = Callable[[int, torch.Tensor, torch.Tensor], object]


@dataclass(frozen=True)
class StepShape:
    """What a captured step is made for.

    Attributes:
        samples, registers, state_dtype: of the sampler's state.
        evaluations: in a step.
        table_rows, modulation_rows: for how many there is room.
        own_rows: every sample names its modulation row; else all share one.
        seeded: noise comes from seeds.
        observed: x and D of the first evaluation are kept.
    """

    samples: int
    registers: int
    state_dtype: torch.dtype
    evaluations: int
    table_rows: int
    modulation_rows: int
    own_rows: bool
    seeded: bool
    observed: bool


class CapturedStep:
    """A step of one shape: `begin`, `load` and `replay` in turn, `end`. A run holds `lock` until `release`."""

    def __init__(self, plan: DevicePlan, shape: StepShape, capture: Capture) -> None:
        self.lock = threading.Lock()
        self._plan, self._shape = plan, shape
        source, device = plan.graph.input, plan.device
        extents = [shape.samples, source.channels, source.height, source.width]
        with torch.inference_mode(False), torch.no_grad():
            self._state = [torch.zeros(extents, dtype=shape.state_dtype, device=device) for _ in range(shape.registers)]
            self._input = torch.zeros(extents, dtype=plan.dtype, device=device).contiguous(
                memory_format=torch.channels_last
            )
            self._rows = torch.zeros([shape.table_rows, ROW_SIZE], dtype=torch.float64, device=device)
            self._row = torch.zeros(1, dtype=torch.int64, device=device)
            self._seeds = torch.zeros(shape.samples, dtype=torch.int64, device=device) if shape.seeded else None
            self._steps = StepTable.empty(
                shape.modulation_rows, plan.graph.columns, shape.samples if shape.own_rows else None, device
            )
            self._x = torch.zeros_like(self._state[0]) if shape.observed else None
            self._denoised = torch.zeros_like(self._state[0]) if shape.observed else None
            # Rows of zeros leave the state as it is, so that what a capture runs beforehand does nothing.
            self._replay, _ = capture(self._step)
            self._free = torch.cuda.Event() if device.type == "cuda" else None

    def _step(self) -> torch.Tensor:
        for evaluation in range(self._shape.evaluations):
            output = self._plan.run(self._input, self._steps.read())
            if evaluation == 0 and self._x is not None:
                self._x.copy_(self._state[0])
            solver_step(
                self._state,
                self._rows,
                1 + evaluation,
                row_offset=self._row,
                model_output=output[:, : self._input.shape[1]],
                seeds=self._seeds,
                net_input=self._input,
                denoised=self._denoised if evaluation == 0 else None,
            )
            self._steps.advance()
        self._row.add_(self._shape.evaluations)
        return self._input

    def begin(
        self, state: list[torch.Tensor], net_input: torch.Tensor, rows: torch.Tensor, seeds: torch.Tensor | None
    ) -> None:
        """Take over a sampler after its row 0."""
        if self._free is not None:
            self._free.wait()
        for own, register in zip(self._state, state, strict=True):
            own.copy_(register)
        self._input.copy_(net_input)
        self._rows[: len(rows)].copy_(rows)
        if self._seeds is not None and seeds is not None:
            self._seeds.copy_(seeds)
        self._row.zero_()

    def load(self, rows: torch.Tensor, of_sample: torch.Tensor | None) -> None:
        """Modulation rows [evaluations, distinct, columns] from the next evaluation on."""
        self._steps.load(rows, of_sample)

    def replay(self, index: int, observer: Observer | None) -> None:
        """Run the step whose first evaluation is `index`."""
        self._replay()
        if observer is not None and self._x is not None and self._denoised is not None:
            observer(index, self._x, self._denoised)

    def end(self, state: list[torch.Tensor], net_input: torch.Tensor) -> None:
        """Give back the state and the input of the next evaluation."""
        for own, register in zip(self._state, state, strict=True):
            register.copy_(own)
        net_input.copy_(self._input)

    def release(self) -> None:
        """Let the next run have the memory, in the order of the current stream."""
        if self._free is not None:
            self._free.record()
        self.lock.release()


def replay_steps(
    table: SolverTable,
    evaluation: Evaluation,
    rows: torch.Tensor,
    state: list[torch.Tensor],
    net_input: torch.Tensor,
    seeds: torch.Tensor | None,
    observer: Observer | None = None,
) -> int:
    """Run the leading steps of a sampler after its row 0, in place. How many evaluations that were.

    0 where nothing is replayed: on the CPU, for networks without a captured plan, within somebody's own capture, while
    another thread runs the same captured step, and for tables of a single step.
    """
    count, each = whole_steps(table)
    plan = evaluation.plan(*net_input.shape[2:]) if isinstance(evaluation, PlanEvaluation) and count > 0 else None
    if plan is None or is_capturing(net_input):
        return 0
    assert isinstance(evaluation, PlanEvaluation)
    shape = StepShape(
        samples=net_input.shape[0],
        registers=len(state),
        state_dtype=state[0].dtype,
        evaluations=each,
        table_rows=room_for(table.evaluations + 1),
        modulation_rows=room_for(evaluation.window * evaluation.distinct),
        own_rows=evaluation.distinct > 1,
        seeded=seeds is not None,
        observed=observer is not None,
    )
    step = plan.captured(shape, lambda capture: CapturedStep(plan.plan, shape, capture))
    if step is None or not step.lock.acquire(blocking=False):
        return 0
    with on_device(plan.plan.device):
        try:
            step.begin(state, net_input, rows, seeds)
            for index in range(0, count * each, each):
                if index % evaluation.window == 0:
                    step.load(*evaluation.modulations(index))
                step.replay(index, observer)
            step.end(state, net_input)
        finally:
            step.release()
    return count * each


def room_for(count: int) -> int:
    """The next power of two, so that tables of similar lengths share a capture."""
    return 1 << (max(count, 1) - 1).bit_length()
