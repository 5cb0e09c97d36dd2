"""A row of a solver table in plain PyTorch: the oracle for `edm_fast.ops.solver_step`, equal to it bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edm_fast.reference.randn import randn

REGISTERS = 4


def solver_step(
    state: Sequence[torch.Tensor],
    row: torch.Tensor,
    model_output: torch.Tensor | None = None,
    guide_output: torch.Tensor | None = None,
    seeds: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    net_input: torch.Tensor | None = None,
    denoised: torch.Tensor | None = None,
    first_bad: torch.Tensor | None = None,
    index: int = 0,
) -> None:
    """Update the registers `state` in place by the 32 coefficients of `row`; see `edm_fast.ops.solver_step`.

    `index` is the row's in its table.
    """
    coefficients = row.tolist()
    d_x, d_f, d_g = coefficients[:3]
    updates = [coefficients[3 + 6 * i : 9 + 6 * i] for i in range(REGISTERS)]
    input_scale, draw = coefficients[27], int(coefficients[28])

    x = state[0]
    missing = torch.full_like(x, torch.nan)
    registers = [*state, *[missing] * (REGISTERS - len(state))]
    D = _linear_form(x, [(d_x, x), (d_f, model_output), (d_g, guide_output)])
    if any(update[5] != 0 for update in updates) and noise is None and seeds is not None:
        noise = randn(x.shape[1:], seeds, draw)

    if first_bad is not None and (denoised is not None or any(update[4] != 0 for update in updates)):
        bad = ~torch.isfinite(D).unsqueeze(-1).flatten(1).all(dim=1)
        first_bad.copy_(torch.where(bad, first_bad.clamp(max=index), first_bad))
    new = []
    for register, update in zip(registers, updates, strict=True):
        terms = list(zip(update, [*registers, D, noise], strict=True))
        new.append(_linear_form(x, terms) if any(update) else register)
    if denoised is not None:
        denoised.copy_(D)
    for register, value in zip(state, new, strict=False):
        register.copy_(value)
    if net_input is not None:
        net_input.copy_(_scalar(input_scale, x) * new[0])


def _linear_form(like: torch.Tensor, terms: list[tuple[float, torch.Tensor | None]]) -> torch.Tensor:
    """Σ coefficient · term from the left, in like's dtype; absent where the coefficient is 0, NaN where the term is."""
    total = None
    for coefficient, term in terms:
        if coefficient == 0:
            continue
        value = torch.full_like(like, torch.nan) if term is None else term.to(like.dtype)
        product = _scalar(coefficient, like) * value
        total = product if total is None else total + product
    return torch.zeros_like(like) if total is None else total


def _scalar(value: float, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(value, dtype=like.dtype, device=like.device)
