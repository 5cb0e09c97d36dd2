"""The end of a residual branch."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor


@overload
def residual(
    a: Tensor, b: Tensor | None = ..., bias: Tensor | None = ..., scale: float = ..., *, moments: Literal[False] = ...
) -> Tensor: ...
@overload
def residual(
    a: Tensor, b: Tensor | None = ..., bias: Tensor | None = ..., scale: float = ..., *, moments: Literal[True]
) -> tuple[Tensor, Tensor]: ...
def residual(
    a: Tensor, b: Tensor | None = None, bias: Tensor | None = None, scale: float = 1.0, *, moments: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Return (a + b + bias)·scale for images [N, C, H, W] and a bias [C], in a's dtype.

    With `moments` also each channel's mean and biased variance over the pixels of the result, [N, C, 2], in float32 (in
    float64 for float64 images), without gradients.
    """
    out = a if b is None else a + b.to(a.dtype)
    if bias is not None:
        out = out + bias.to(a.dtype).reshape(1, -1, 1, 1)
    out = out * scale
    if not moments:
        return out
    pixels = out.detach().to(torch.promote_types(a.dtype, torch.float32)).flatten(2)
    return out, torch.stack([pixels.mean(dim=2), pixels.var(dim=2, correction=0)], dim=2)
