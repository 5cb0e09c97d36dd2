"""Noise, and the sampler's step kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import edm_fast
from edm_fast.bench.names import named
from edm_fast.bench.registry import Entry
from edm_fast.bench.turns import Case, Peer
from edm_fast.ops.solver_step import (
    DENOISED_FROM_MODEL,
    DRAW,
    NET_INPUT_SCALE,
    REGISTERS,
    UPDATE,
    UPDATE_TERMS,
    solver_step,
)
from edm_fast.reference.randn import randn as reference_randn
from edm_fast.reference.solver_step import solver_step as reference_solver_step
from edm_fast.samplers.edm import edm_table

SHAPES = ((1, 3, 32, 32), (64, 3, 32, 32), (64, 3, 64, 64))
_QUICK = SHAPES[1]
_SIGMA_DATA = 0.5


def entries() -> Iterator[Entry]:
    for shape in SHAPES:
        for dtype in (torch.float64, torch.float32):
            yield Entry("randn", f"randn {named(shape, dtype)}", partial(randn_case, shape, dtype), shape == _QUICK)
    for S_churn in (0.0, 40.0):
        for shape in SHAPES:
            name = f"solver_step ×2 {named(shape, torch.float64)}, S_churn={S_churn:g}"
            yield Entry("solver_step", name, partial(solver_step_case, shape, S_churn), shape == _QUICK)


def randn_case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    seeds = torch.arange(shape[0])

    def ours() -> Tensor:
        return edm_fast.randn(shape[1:], seeds, dtype=dtype)

    def expected() -> Tensor:
        return reference_randn(shape[1:], seeds, 0)

    peer = Peer(lambda: torch.randn(shape, dtype=dtype))
    size, bound = dtype.itemsize * math.prod(shape), 1e-12 if dtype == torch.float64 else 1e-5
    targets = {"torch": 5.0} if dtype == torch.float64 else {}
    return Case(ours, ours, expected, bound, {"torch.randn": peer}, size, targets=targets)


def heun_rows(S_churn: float) -> Tensor:
    """The table's rows of one step in the middle of the default sampler, a predictor and a corrector."""
    table = edm_table(object(), num_steps=18, S_churn=S_churn)
    variance = table.sigma**2 + _SIGMA_DATA**2
    c_skip, c_out, c_in = _SIGMA_DATA**2 / variance, table.sigma * _SIGMA_DATA / variance**0.5, variance**-0.5
    return torch.from_numpy(table.rows(c_skip, c_out, c_in))[17:19].contiguous()


def step_bytes(row: Tensor, register_bytes: int, image_bytes: int) -> int:
    """What a row reads and writes of registers, F and the network's input; its own noise is made, not read."""
    update = row[UPDATE:NET_INPUT_SCALE].reshape(REGISTERS, UPDATE_TERMS) != 0
    used, written = update.any(dim=0), update.any(dim=1)
    registers = int(used[:REGISTERS].sum()) + int(written.sum())
    reads_output = bool(used[REGISTERS]) and bool(row[DENOISED_FROM_MODEL] != 0)
    return registers * register_bytes + (1 + reads_output) * image_bytes


def solver_step_case(shape: tuple[int, ...], S_churn: float) -> Case:
    """Both rows of a Heun step in float64. The peer draws its noise with torch.randn_like, where a row uses any."""
    rows, seeds = heun_rows(S_churn), torch.arange(shape[0])
    update = rows[:, UPDATE:NET_INPUT_SCALE].reshape(len(rows), REGISTERS, UPDATE_TERMS)
    noisy = (update[:, :, -1] != 0).any(dim=1).tolist()
    network_output = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def state() -> list[Tensor]:
        generator = torch.Generator().manual_seed(2)
        return [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2)]

    def ours(registers: list[Tensor], net_input: Tensor) -> None:
        for index in range(len(rows)):
            solver_step(registers, rows, index, model_output=network_output, seeds=seeds, net_input=net_input)

    def reference(registers: list[Tensor], net_input: Tensor, draw: Callable[[int], Tensor]) -> None:
        for index in range(len(rows)):
            noise = draw(index) if noisy[index] else None
            reference_solver_step(registers, rows[index], network_output, noise=noise, net_input=net_input)

    def our_noise(index: int) -> Tensor:
        return edm_fast.randn(shape[1:], seeds, int(rows[index, DRAW]), dtype=torch.float64)

    def result(step: Callable[[list[Tensor], Tensor], None]) -> Tensor:
        registers, net_input = state(), torch.empty(shape)
        step(registers, net_input)
        return torch.cat([*registers, net_input.double()])

    def with_our_noise() -> Tensor:
        return result(lambda registers, net_input: reference(registers, net_input, our_noise))

    timed, timed_reference = state(), state()
    fast_input, plain_input = torch.empty(shape).to(memory_format=torch.channels_last), torch.empty(shape)
    peer = Peer(
        lambda: reference(timed_reference, plain_input, lambda _: torch.randn_like(timed_reference[0])), with_our_noise
    )
    elements = network_output.numel()
    return Case(
        lambda: ours(timed, fast_input),
        lambda: result(ours),
        with_our_noise,
        1e-12,
        {"reference": peer},
        sum(step_bytes(row, 8 * elements, 4 * elements) for row in rows),
        targets={"reference": 10.0},
    )
