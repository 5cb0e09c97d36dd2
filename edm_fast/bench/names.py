"""Names of cases, and times as people read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def named(shape: Sequence[int], dtype: torch.dtype) -> str:
    """[8, 3, 32, 32] in float32 → '8 × 3×32×32 float32'."""
    samples, *rest = shape
    return f"{samples} × {'×'.join(map(str, rest))} {dtype_name(dtype)}"


def time_text(value: float) -> str:
    """1.234e-3 → '1.23 ms', with three digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:#.3g}".rstrip(".") + f" {unit}"
    return f"{value * 1e9:.3g} ns"
