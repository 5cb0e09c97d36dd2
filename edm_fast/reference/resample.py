"""2× resampling with a separable FIR filter, as depthwise convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def resample(
    x: Tensor, *, up: bool = False, down: bool = False, taps: Sequence[float] = (1, 1), padding: int | None = None
) -> Tensor:
    """Return x [N, C, H, W] with its extents doubled (`up`) or halved (`down`), in x's dtype.

    The filter is the outer product of `taps`, normalised to sum 1; up uses four times that. `padding` is (k − 2)/2 by
    default, with which the extents are doubled and halved exactly.
    """
    f = torch.tensor(taps, dtype=torch.float64)
    f = f / f.sum()
    p = (len(taps) - 2) // 2 if padding is None else padding
    kernel = f.outer(f).to(x).expand(x.shape[1], 1, -1, -1)
    if up:
        return functional.conv_transpose2d(x, 4 * kernel, stride=2, padding=p, groups=x.shape[1])
    if down:
        return functional.conv2d(x, kernel, stride=2, padding=p, groups=x.shape[1])
    return x
