"""The convolution that the networks call, in one place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from edm_fast.ops.conv2d import conv2d
from edm_fast.ops.conv2d_forms import fastest_winograd, library_has_tiles

_OUR_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Weights are packed at every call: layers smaller than these do not make up for it.
_SMALLEST = 12
_FEWEST_CHANNELS = 64


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int | None = None) -> Tensor:
    """weight * x + bias in x's dtype: x [N, I, H, W], weight [O, I, k, k] and bias [O] in any float dtype.

    The padding is k // 2 if not given. On the CPU, wide 3×3 layers are ours, by Winograd's forms; the others are those
    of the library behind PyTorch, oneDNN or cuDNN, in the layout of x. The gradient of the bias is summed in float32
    and pairwise, since oneDNN sums channels-last images one by one.
    """
    margin = weight.shape[-1] // 2 if padding is None else padding
    rounded = None if bias is None else bias.detach().to(x.dtype)
    algorithm = _winograd(x, weight, margin)
    if algorithm is None:
        out = functional.conv2d(x, weight.to(x.dtype), rounded, padding=margin)
    else:
        out = conv2d(x, weight, rounded, padding=margin, algorithm=algorithm)
    needs_grad = torch.is_grad_enabled() and bias is not None and bias.requires_grad
    return _BiasGradient.apply(out, bias) if needs_grad else out


def _winograd(x: Tensor, weight: Tensor, margin: int) -> str | None:
    """The form of ours that a layer takes, by its shape per sample; None where the library's is as fast."""
    if x.device.type != "cpu" or weight.shape[-1] != 3 or x.dtype not in _OUR_DTYPES or not x.numel():
        return None
    smallest = min(x.shape[2:]) + 2 * margin - 2
    if smallest < _SMALLEST or min(weight.shape[:2]) < _FEWEST_CHANNELS:
        return None
    # The library's products by matrix tiles are faster.
    if x.dtype == torch.bfloat16 and library_has_tiles():
        return None
    return fastest_winograd(x.shape[1], smallest)


class _BiasGradient(torch.autograd.Function):
    """Of a bias that is already in the images."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, bias: Tensor) -> Tensor:
        ctx.dtype = bias.dtype
        return images.view_as(images)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        accumulate = torch.promote_types(ctx.dtype, torch.float32)
        return grad, grad.sum([0, 2, 3], dtype=accumulate).to(ctx.dtype)
