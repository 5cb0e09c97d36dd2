"""Names of cases."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def named(shape: Sequence[int], dtype: torch.dtype) -> str:
    """[8, 3, 32, 32] in float32 → '8 × 3×32×32 float32'."""
    samples, *rest = shape
    return f"{samples} × {'×'.join(map(str, rest))} {dtype_name(dtype)}"
