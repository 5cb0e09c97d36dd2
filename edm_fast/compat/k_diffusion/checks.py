"""Checks of what callers pass to the samplers and schedules. Each error names the argument, what it got and wants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from edm_fast.ops.tensors import check_float
from edm_fast.samplers.arguments import check_number, check_positive, check_strided
from edm_fast.samplers.solvers import Churn

Levels = torch.Tensor | Sequence[float]


def check_x(x: Any) -> torch.Tensor:
    """A floating-point batch."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x: got {type(x).__name__}; it is a tensor [N, …]")
    check_float("x", x.dtype)
    check_strided("x", x)
    if x.dim() < 1:
        raise ValueError("x: got a scalar; it is a tensor [N, …]")
    return x


def sigma_tensor(sigmas: Levels) -> torch.Tensor:
    """The noise levels as a 1-D floating-point tensor: the caller's own, if it is one."""
    try:
        tensor = torch.as_tensor(sigmas)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"sigmas: got {sigmas!r}; a 1-D tensor of noise levels is needed ({error})") from None
    if tensor.is_meta:
        raise ValueError("sigmas: on meta, where tensors have no values")
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"sigmas: dtype is {tensor.dtype}; noise levels are real numbers")
    check_strided("sigmas", tensor)
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
    if tensor.dim() != 1:
        raise ValueError(f"sigmas: shape is {tuple(tensor.shape)}; a 1-D tensor of noise levels is needed")
    return tensor.detach()


def level_list(sigmas: torch.Tensor, order: str) -> list[float]:
    """The noise levels on the host: positive and finite, but for a last one of 0.

    order: "any"; "distinct", where no two neighbours are equal; or "falling", where each is below the one before.
    """
    levels: list[float] = sigmas.to(device="cpu", dtype=torch.float64).tolist()
    for index, level in enumerate(levels):
        if not math.isfinite(level) or level < 0 or (level == 0 and index < len(levels) - 1):
            raise ValueError(
                f"sigmas: number {index} of {len(levels)} is {level}; they are positive and finite, and the last may "
                "be 0"
            )
        if index == 0 or order == "any":
            continue
        before = levels[index - 1]
        if level == before or (order == "falling" and level > before):
            wanted = "must fall from each to the next" if order == "falling" else "must differ from their neighbours"
            raise ValueError(f"sigmas: number {index} is {level} after {before}; for this sampler they {wanted}")
    return levels


def check_churn(s_churn: Any, s_tmin: Any, s_tmax: Any, s_noise: Any) -> Churn:
    churn = check_not_negative("s_churn", s_churn, finite=False)
    low, high = check_number("s_tmin", s_tmin), check_number("s_tmax", s_tmax)
    return Churn(churn, low, high, check_not_negative("s_noise", s_noise))


def check_not_negative(name: str, value: Any, finite: bool = True) -> float:
    number = check_number(name, scalar(value))
    if number < 0 or (finite and math.isinf(number)):
        raise ValueError(f"{name}: got {value}; it must be{' finite and' if finite else ''} not negative")
    return number


def check_level(name: str, value: Any) -> float:
    """A positive, finite number, also as a tensor of one element."""
    return check_positive(name, scalar(value))


def scalar(value: Any) -> Any:
    """The number in a tensor of one element; anything else as it is."""
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
