"""GroupNorm with what surrounds it in EDM's U-Nets: concatenation, sum, embedding, modulation, SiLU, resampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from edm_fast.reference.resample import resample


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    *,
    x2: Tensor | None = None,
    addend: Tensor | None = None,
    sum_scale: float = 1.0,
    pre_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = True,
    up: bool = False,
    down: bool = False,
    taps: Sequence[float] = (1, 1),
    plain: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Return out, or (out, plain), (out, sum), (out, plain, sum), in x's dtype and differentiable.

        x    = cat(x, x2), or sum = (x + addend)·sum_scale
        u    = GroupNorm(x + pre_bias)·weight + bias
        y    = silu(u·(1 + scale) + shift)
        out  = resample(y)    plain = resample(x)

    x, x2, addend are images [N, Ci, H, W], weight and bias [C], pre_bias, scale and shift rows [N or 1, C].
    """
    if addend is not None:
        x = (x + addend.to(x.dtype)) * sum_scale
    if x2 is not None:
        x = torch.cat([x, x2.to(x.dtype)], dim=1)
    h = x if pre_bias is None else x + _rows(pre_bias, x)
    # functional.group_norm refuses groups of a single element.
    y = torch.group_norm(h, num_groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    if scale is not None and shift is not None:
        y = torch.addcmul(_rows(shift, x), y, _rows(scale, x) + 1)
    if silu:
        y = functional.silu(y)
    out = resample(y, up=up, down=down, taps=taps)
    results = [out]
    if plain:
        results.append(resample(x, up=up, down=down, taps=taps))
    if addend is not None:
        results.append(x)
    return results[0] if len(results) == 1 else tuple(results)


def _rows(values: Tensor, x: Tensor) -> Tensor:
    """Rows [N or 1, C] as [N or 1, C, 1, 1] in x's dtype."""
    return values.to(x.dtype)[:, :, None, None]
