"""Convolution and what follows it in a residual branch, in plain PyTorch."""

from __future__ import annotations

import torch
from torch.nn import functional


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    x2: torch.Tensor | None = None,
    channel_bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    residual_up: bool = False,
    scale: float = 1.0,
    padding: int | None = None,
) -> torch.Tensor:
    """(weight * [x, x2] + bias + channel_bias + residual) · scale, in x's dtype; see `edm_fast.ops.conv2d`."""
    source = x if x2 is None else torch.cat([x, x2], dim=1)
    padding = weight.shape[-1] // 2 if padding is None else padding
    out = functional.conv2d(source, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=padding)
    if channel_bias is not None:
        out = out + channel_bias.to(x.dtype)[:, :, None, None]
    if residual is not None:
        out = out + (residual.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) if residual_up else residual)
    return out if scale == 1 else out * scale
