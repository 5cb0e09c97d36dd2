"""One row of a solver table: everything between two network evaluations, in one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from edm_fast.ops import backends
from edm_fast.ops.library import LIBRARY
from edm_fast.ops.tensors import (
    ABSENT,
    View,
    check_device,
    check_float,
    check_shape,
    check_writable,
    image_view,
    kernel_shape,
    viewable,
)

# The layout of a row, as in csrc/include/edm_fast/solver_step.h.
REGISTERS = 4
UPDATE_TERMS = REGISTERS + 2
DENOISED_FROM_STATE, DENOISED_FROM_MODEL, DENOISED_FROM_GUIDE, UPDATE = 0, 1, 2, 3
NET_INPUT_SCALE = UPDATE + REGISTERS * UPDATE_TERMS
DRAW = NET_INPUT_SCALE + 1
ROW_SIZE = 32


def solver_step(
    state: Sequence[torch.Tensor],
    table: torch.Tensor,
    row: int,
    *,
    row_offset: torch.Tensor | None = None,
    model_output: torch.Tensor | None = None,
    guide_output: torch.Tensor | None = None,
    seeds: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    net_input: torch.Tensor | None = None,
    denoised: torch.Tensor | None = None,
    first_bad: torch.Tensor | None = None,
    backend: str | None = None,
) -> None:
    """Execute row `row` of `table` on the registers `state` = [r0, …], in place.

        D    = d_x·r0 + d_f·F + d_g·G
        r_i' = u_i0·r0 + … + u_i3·r3 + u_iD·D + u_iz·z
        net_input = in·r0'

    F is `model_output`, G is `guide_output` (a second network, for guidance), z is `noise` or, without it, the standard
    normal numbers of `edm_fast.randn` for `seeds` and the row's draw. A term with coefficient 0 is absent; a register
    whose coefficients are all 0 keeps its value. A term whose tensor is missing gives NaN; a missing register is not
    written. Where a row has a D that is not finite, `first_bad` of the sample is lowered to the row. Arithmetic is in
    the state's dtype, each product and sum rounded by itself, so all backends give the same bits. Tensors that are
    written must not overlap one another or those that are read, except at the same element.

    Args:
        state: one to four tensors [N, …] of one shape and dtype, float64 or float32; r0 is the point of evaluation.
        table: float64 [rows, 32], contiguous, on the state's device; `edm_fast.samplers.table` makes it.
        row: index of the row.
        row_offset: int64 [1] on the device, added to `row`; it lets a captured CUDA graph go through the table. On a
            GPU its range is not checked.
        model_output, guide_output, noise: read; like the state in shape, any float dtype and memory layout.
        seeds: int64 [N].
        net_input, denoised: written; like the state in shape, any float dtype, contiguous or channels-last.
        first_bad: int64 [N], contiguous; begin with numbers beyond any row. A row has a D if it uses it or `denoised`
            is there.
        backend: None (by device), "cpu", "cuda" or "reference".

    Raises:
        ValueError, TypeError: tensors that differ in shape or device, or a dtype that is not covered; before any
            launch.
    """
    args = StepArguments(
        state, table, row, row_offset, model_output, guide_output, seeds, noise, net_input, denoised, first_bad
    )
    chosen = backends.choose(backend, state[0].device) if state else "cpu"
    if chosen == "reference":
        from edm_fast.reference.solver_step import solver_step as reference_solver_step

        _check(args)
        offset = 0 if row_offset is None else int(row_offset)
        row += offset
        reference_solver_step(
            state, table[row], model_output, guide_output, seeds, noise, net_input, denoised, first_bad, row
        )
    elif backend is None:
        torch.ops.edm_fast.solver_step_(*args)
    else:
        _run(chosen, args)


class StepArguments(NamedTuple):
    """The arguments of the torch operator `edm_fast::solver_step_`; see `solver_step`."""

    state: Sequence[torch.Tensor]
    table: torch.Tensor
    row: int
    row_offset: torch.Tensor | None
    model_output: torch.Tensor | None
    guide_output: torch.Tensor | None
    seeds: torch.Tensor | None
    noise: torch.Tensor | None
    net_input: torch.Tensor | None
    denoised: torch.Tensor | None
    first_bad: torch.Tensor | None


def _check(args: StepArguments) -> None:
    state, table, row = args.state, args.table, args.row
    if not 1 <= len(state) <= REGISTERS:
        raise ValueError(f"state: got {len(state)} tensors; one to {REGISTERS} are needed")
    x = state[0]
    if x.dtype not in (torch.float64, torch.float32):
        raise TypeError(f"state: dtype is {x.dtype}; it must be float64 or float32")
    if x.dim() < 1:
        raise ValueError("state: a batch dimension is needed")
    if table.dtype != torch.float64 or table.dim() != 2 or table.shape[1] != ROW_SIZE or not table.is_contiguous():
        raise ValueError(f"table: got {table.dtype} {tuple(table.shape)}; contiguous float64 [n, {ROW_SIZE}] is needed")
    if not 0 <= row < table.shape[0]:
        raise ValueError(f"row: got {row}; the table has {table.shape[0]} rows")
    check_device("table", table, x.device)
    for register, tensor in enumerate(state):
        name = f"state[{register}]"
        check_shape(name, tensor, x.shape)
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name}: dtype is {tensor.dtype}; state[0] is {x.dtype}")
        check_device(name, tensor, x.device)
        check_writable(name, tensor)
    for name in ("model_output", "guide_output", "noise", "net_input", "denoised"):
        image = getattr(args, name)
        if image is not None:
            check_device(name, image, x.device)
            check_shape(name, image, x.shape)
            check_float(name, image.dtype)
            if name in ("net_input", "denoised"):
                check_writable(name, image)
    if args.row_offset is not None:
        check_device("row_offset", args.row_offset, x.device)
        if args.row_offset.dtype != torch.int64 or args.row_offset.numel() != 1:
            got = f"{args.row_offset.dtype} {tuple(args.row_offset.shape)}"
            raise ValueError(f"row_offset: got {got}; int64 [1] is needed")
    for name in ("seeds", "first_bad"):
        numbers = getattr(args, name)
        if numbers is not None:
            check_device(name, numbers, x.device)
            if numbers.dtype != torch.int64 or tuple(numbers.shape) != (x.shape[0],):
                got = f"{numbers.dtype} {tuple(numbers.shape)}"
                raise ValueError(f"{name}: got {got}; int64 [{x.shape[0]}] is needed")
    if args.first_bad is not None and not args.first_bad.is_contiguous():
        raise ValueError("first_bad: it is not contiguous")


def _run(backend: str, args: StepArguments) -> None:
    _check(args)
    state, x = args.state, args.state[0]
    if args.row_offset is not None and x.device.type == "cpu":
        # On a GPU the offset is read by the kernel alone; whoever captures a graph keeps it in range.
        row = args.row + int(args.row_offset)
        if not 0 <= row < args.table.shape[0]:
            raise ValueError(f"row_offset: row {row} is not one of the table's {args.table.shape[0]}")
    # Copies, if any, must outlive the launch.
    read = [
        None if tensor is None else viewable(tensor) for tensor in (args.model_output, args.guide_output, args.noise)
    ]
    keys = None if args.seeds is None else args.seeds.contiguous()
    model_output, guide_output, noise = (_view("input", tensor) for tensor in read)
    registers = tuple(_view(f"state[{i}]", state[i] if i < len(state) else None) for i in range(REGISTERS))
    backends.launch(
        "solver_step",
        backend,
        x.device,
        kernel_shape(x.shape),
        args.table.data_ptr(),
        args.row,
        0 if args.row_offset is None else args.row_offset.data_ptr(),
        registers[0][1],
        registers,
        model_output,
        guide_output,
        0 if keys is None else keys.data_ptr(),
        noise,
        _view("net_input", args.net_input),
        _view("denoised", args.denoised),
        0 if args.first_bad is None else args.first_bad.data_ptr(),
    )


def _view(name: str, tensor: torch.Tensor | None) -> View:
    return ABSENT if tensor is None else image_view(name, tensor)


LIBRARY.define(
    "solver_step_(Tensor(a!)[] state, Tensor table, int row, Tensor? row_offset, Tensor? model_output, "
    "Tensor? guide_output, Tensor? seeds, Tensor? noise, Tensor(b!)? net_input, Tensor(c!)? denoised, "
    "Tensor(d!)? first_bad) -> ()"
)
LIBRARY.impl("solver_step_", lambda *args: _run("cpu", StepArguments(*args)), "CPU")
LIBRARY.impl("solver_step_", lambda *args: _run("cuda", StepArguments(*args)), "CUDA")


@torch.library.register_fake("edm_fast::solver_step_", lib=LIBRARY)
def _fake(*args: Any) -> None:
    _check(StepArguments(*args))
