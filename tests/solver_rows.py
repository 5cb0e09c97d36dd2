"""Rows of solver tables, and tensors for one call of solver_step."""

from __future__ import annotations

import torch
from tolerance import assert_same_bits

from edm_fast.ops.solver_step import (
    DENOISED_FROM_MODEL,
    DENOISED_FROM_STATE,
    DRAW,
    NET_INPUT_SCALE,
    REGISTERS,
    ROW_SIZE,
    UPDATE,
    UPDATE_TERMS,
    solver_step,
)

DENOISED, NOISE = REGISTERS, REGISTERS + 1


def dense_table(rows: int = 3, seed: int = 0) -> torch.Tensor:
    """Rows with every coefficient in use."""
    table = torch.randn([rows, ROW_SIZE], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    table[:, DRAW] = torch.arange(rows) + 1
    return table


def heun_like_table() -> torch.Tensor:
    """Rows with the zeros that solvers have: a predictor, a corrector, a churned Euler step."""
    table = torch.zeros([3, ROW_SIZE], dtype=torch.float64)
    update = table[:, UPDATE:NET_INPUT_SCALE].view(3, REGISTERS, UPDATE_TERMS)
    table[:, DENOISED_FROM_MODEL], table[:, NET_INPUT_SCALE] = 0.8, 1.7
    table[:, DENOISED_FROM_STATE] = torch.tensor([0.3, 0.0, 0.3])
    update[0, 0, 0], update[0, 0, DENOISED] = 0.7, 0.3
    update[0, 1, 0], update[0, 1, DENOISED] = 0.9, 0.1
    update[1, 0, 0], update[1, 0, 1], update[1, 0, DENOISED] = 0.2, 1.0, 0.15
    update[2, 0, 0], update[2, 0, DENOISED], update[2, 0, NOISE] = 0.5, 0.5, 0.25
    table[:, DRAW] = torch.tensor([1.0, 0.0, 2.0])
    return table


class Step:
    """Random tensors for a row, on one device; run() gives everything that the op wrote."""

    def __init__(self, shape, device, *, state_dtype=torch.float64, dtype=torch.float32, seed=1):
        generator = torch.Generator().manual_seed(seed)

        def draw(kind):
            return torch.randn(shape, dtype=torch.float64, generator=generator).to(kind).to(device)

        self.state = [draw(state_dtype) for _ in range(REGISTERS)]
        self.tensors = {
            "model_output": draw(dtype),
            "guide_output": draw(dtype),
            "noise": draw(state_dtype),
            "net_input": torch.full(shape, torch.nan, dtype=dtype, device=device),
            "denoised": torch.full(shape, torch.nan, dtype=state_dtype, device=device),
        }

    def run(self, table, row, backend, **overrides):
        device = self.state[0].device
        tensors = {**self.tensors, **overrides}
        state = [tensor.clone() for tensor in self.state]
        for name in ("net_input", "denoised"):
            if tensors[name] is not None:
                tensors[name] = tensors[name].clone()
        solver_step(state, table.to(device), row, backend=backend, **tensors)
        return [tensor.cpu() for tensor in [*state, tensors["net_input"], tensors["denoised"]] if tensor is not None]


def assert_same_step(actual, expected):
    for got, wanted in zip(actual, expected, strict=True):
        assert_same_bits(got, wanted)
