"""Sampling by replays: the evaluations of a step and the kernels between them, captured as one CUDA graph.

All that differs between steps, tables and batches lies in device memory and is copied there before the first replay:
state, coefficient rows, seeds, modulation rows and the index of the step. So one capture serves every table whose steps
have as many evaluations, and the host does nothing between steps but launch.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from edm_fast.ops.solver_step import ROW_SIZE, solver_step
from edm_fast.plan.capture import Capture
from edm_fast.plan.device import DevicePlan
from edm_fast.plan.graphs import is_capturing, on_device
from edm_fast.plan.steps import StepTable
from edm_fast.samplers.evaluation import Evaluation, PlanEvaluation
from edm_fast.samplers.guidance import Guide
from edm_fast.samplers.table import SolverTable, whole_steps

# Called with the index of a step's first evaluation, x and D there; both are written again by the next step.
Observer = Callable[[int, torch.Tensor, torch.Tensor], object]


@dataclass(frozen=True)
class StepShape:
    """What a captured step is made for.

    Attributes:
        samples, registers, state_dtype: of the sampler's state.
        evaluations: in a step.
        table_rows: for how many there is room.
        seeded: noise comes from seeds.
        observed: x and D of the first evaluation are kept.
    """

    samples: int
    registers: int
    state_dtype: torch.dtype
    evaluations: int
    table_rows: int
    seeded: bool
    observed: bool


@dataclass(frozen=True)
class TableShape:
    """Room for `rows` modulation rows; `own_rows`: every sample names its own, else all share one."""

    rows: int
    own_rows: bool


class CapturedStep:
    """A step of one shape: `begin`, `load` and `replay` in turn, `end`. A run holds `lock` until `release`."""

    def __init__(self, plans: Sequence[DevicePlan], shapes: Sequence[TableShape], shape: StepShape, capture: Capture):
        """`plans`: of the network and, if there is one, of its guide, with the shapes of their modulation tables."""
        self.lock = threading.Lock()
        self._plans, self._shape = plans, shape
        plan = plans[0]
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
            self._steps = [
                StepTable.empty(table.rows, plan.graph.columns, shape.samples if table.own_rows else None, device)
                for plan, table in zip(plans, shapes, strict=True)
            ]
            self._first_bad = torch.zeros(shape.samples, dtype=torch.int64, device=device)
            self._x = torch.zeros_like(self._state[0]) if shape.observed else None
            self._denoised = torch.zeros_like(self._state[0]) if shape.observed else None
            # Rows of zeros leave the state as it is, so that what a capture runs beforehand does nothing.
            self._replay, _ = capture(self._step)
            self._free = torch.cuda.Event() if device.type == "cuda" else None

    def _step(self) -> torch.Tensor:
        for evaluation in range(self._shape.evaluations):
            outputs: list[torch.Tensor | None] = [None, None]
            for index, (plan, steps) in enumerate(zip(self._plans, self._steps, strict=True)):
                outputs[index] = plan.run(self._input, steps.read())[:, : self._input.shape[1]]
                steps.advance()
            if evaluation == 0 and self._x is not None:
                self._x.copy_(self._state[0])
            solver_step(
                self._state,
                self._rows,
                1 + evaluation,
                row_offset=self._row,
                model_output=outputs[0],
                guide_output=outputs[1],
                seeds=self._seeds,
                net_input=self._input,
                denoised=self._denoised if evaluation == 0 else None,
                first_bad=self._first_bad,
            )
        self._row.add_(self._shape.evaluations)
        return self._input

    def begin(self, run: Run, first: int, state: list[torch.Tensor], net_input: torch.Tensor) -> None:
        """Take over a sampler before its evaluation `first`."""
        if self._free is not None:
            self._free.wait()
        for own, register in zip(self._state, state, strict=True):
            own.copy_(register)
        self._input.copy_(net_input)
        self._rows[: len(run.rows)].copy_(run.rows)
        if self._seeds is not None and run.seeds is not None:
            self._seeds.copy_(run.seeds)
        if run.first_bad is not None:
            self._first_bad.copy_(run.first_bad)
        self._row.fill_(first)

    def load(self, evaluations: Sequence[PlanEvaluation], index: int, begins: bool) -> None:
        """Modulation rows for evaluation `index`, if it is the first of its window, or of this run."""
        for evaluation, steps in zip(evaluations, self._steps, strict=True):
            offset = index % evaluation.window
            if begins or offset == 0:
                steps.load(*evaluation.modulations(index - offset))
                steps.seek(offset)

    def replay(self, index: int, observer: Observer | None) -> None:
        """Run the step whose first evaluation is `index`."""
        self._replay()
        if observer is not None and self._x is not None and self._denoised is not None:
            observer(index, self._x, self._denoised)

    def end(self, run: Run, state: list[torch.Tensor], net_input: torch.Tensor) -> None:
        """Give back the state and the input of the next evaluation."""
        if run.first_bad is not None:
            run.first_bad.copy_(self._first_bad)
        for own, register in zip(self._state, state, strict=True):
            register.copy_(own)
        net_input.copy_(self._input)

    def release(self) -> None:
        """Let the next run have the memory, in the order of the current stream."""
        if self._free is not None:
            self._free.record(torch.cuda.current_stream(self._plans[0].device))
        self.lock.release()


def is_captured(evaluation: Evaluation, net_input: torch.Tensor) -> bool:
    """Whether the network's plan captures what it runs."""
    return isinstance(evaluation, PlanEvaluation) and evaluation.plan(*net_input.shape[2:]) is not None


@dataclass(frozen=True)
class Run:
    """A sampler whose noise comes from seeds, or has none. `rows` are the table's, on the device."""

    table: SolverTable
    evaluation: Evaluation
    guide: Guide | None
    rows: torch.Tensor
    seeds: torch.Tensor | None
    observer: Observer | None
    first_bad: torch.Tensor | None = None

    @functools.cached_property
    def _steps(self) -> tuple[int, int]:
        return whole_steps(self.table)

    def alike(self, first: int) -> tuple[int, bool]:
        """From evaluation `first` on: how many evaluations of whole steps all have the guide, or all have not."""
        count, each = self._steps
        if first % each != 0 or first >= count * each:
            return 0, False
        with_guide = self._has_guide(first)
        end = first
        while end < count * each and all(self._has_guide(index) == with_guide for index in range(end, end + each)):
            end += each
        return end - first, with_guide

    def _has_guide(self, index: int) -> bool:
        return self.guide is not None and self.guide.takes_part(index)


def replay_steps(run: Run, first: int, state: list[torch.Tensor], net_input: torch.Tensor) -> int:
    """Run steps from evaluation `first` on, in place, as long as they are alike. How many evaluations that were.

    0 where nothing is replayed: on the CPU, for networks without a captured plan, within somebody's own capture, while
    another thread runs the same captured step, in the middle of a step, and for steps that the guide enters or leaves.
    """
    number, with_guide = run.alike(first)
    if number == 0 or is_capturing(net_input):
        return 0
    evaluations = [run.evaluation]
    if run.guide is not None and with_guide:
        evaluations.append(run.guide.evaluation)
    planned = [evaluation for evaluation in evaluations if isinstance(evaluation, PlanEvaluation)]
    plans = [evaluation.plan(*net_input.shape[2:]) for evaluation in planned]
    captured = [plan for plan in plans if plan is not None]
    if len(captured) < len(evaluations):
        return 0
    shape = StepShape(
        samples=net_input.shape[0],
        registers=len(state),
        state_dtype=state[0].dtype,
        evaluations=whole_steps(run.table)[1],
        table_rows=room_for(run.table.evaluations + 1),
        seeded=run.seeds is not None,
        observed=run.observer is not None,
    )
    tables = tuple(TableShape(room_for(each.window * each.distinct), each.distinct > 1) for each in planned)
    device_plans = [plan.plan for plan in captured]
    # Captured steps keep their plans, so that no other plan gets the identity of one of them.
    key = (shape, tables, *map(id, device_plans))
    step = captured[0].captured(key, lambda capture: CapturedStep(device_plans, tables, shape, capture))
    if step is None or not step.lock.acquire(blocking=False):
        return 0
    try:
        with on_device(device_plans[0].device):
            step.begin(run, first, state, net_input)
            for index in range(first, first + number, shape.evaluations):
                step.load(planned, index, index == first)
                step.replay(index, run.observer)
            step.end(run, state, net_input)
    finally:
        step.release()
    return number


def room_for(count: int) -> int:
    """The next power of two, so that tables of similar lengths share a capture."""
    return 1 << (max(count, 1) - 1).bit_length()
