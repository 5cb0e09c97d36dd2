"""The convolution that the networks call, in one place."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int | None = None) -> Tensor:
    """weight * x + bias in x's dtype: x [N, I, H, W], weight [O, I, k, k] and bias [O] in any float dtype.

    The padding is k // 2 if not given. The library behind PyTorch, oneDNN or cuDNN, computes it in the layout of x.
    """
    rounded = None if bias is None else bias.to(x.dtype)
    return functional.conv2d(
        x, weight.to(x.dtype), rounded, padding=weight.shape[-1] // 2 if padding is None else padding
    )
