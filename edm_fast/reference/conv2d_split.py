"""A convolution with the end of a residual branch, and the moments of each 64 pixels of it, in plain PyTorch."""

from __future__ import annotations

import torch
from torch.nn import functional

# Pixels that share a mean and a variance.
CHUNK = 64


def conv2d_split(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    scale: float = 1.0,
    padding: int | None = None,
    moments: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """See `edm_fast.ops.conv2d_split`; sums are in x's dtype."""
    padding = weight.shape[-1] // 2 if padding is None else padding
    out = functional.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=padding)
    if residual is not None:
        out = out + residual
    if scale != 1.0:
        out = out * scale
    return (out, chunk_moments(out)) if moments else out


def chunk_moments(images: torch.Tensor) -> torch.Tensor:
    """[N, ceil(H·W / 64), C, 2]: mean and biased variance of each channel over each 64 pixels, row by row.

    In float32 for images of 16 bits.
    """
    rows = images.to(torch.promote_types(images.dtype, torch.float32)).permute(0, 2, 3, 1).flatten(1, 2)
    chunks = rows.split(CHUNK, dim=1)
    return torch.stack([torch.stack([part.mean(1), part.var(1, unbiased=False)], dim=-1) for part in chunks], dim=1)
