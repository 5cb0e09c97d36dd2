"""The convolution that the networks call, in one place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int | None = None) -> Tensor:
    """weight * x + bias in x's dtype: x [N, I, H, W], weight [O, I, k, k] and bias [O] in any float dtype.

    The padding is k // 2 if not given. The library behind PyTorch, oneDNN or cuDNN, computes it in the layout of x; but
    the gradient of the bias is summed in float32 and pairwise, since oneDNN sums channels-last images one by one.
    """
    margin = weight.shape[-1] // 2 if padding is None else padding
    if bias is None:
        return functional.conv2d(x, weight.to(x.dtype), padding=margin)
    needs_grad = torch.is_grad_enabled() and bias.requires_grad
    out = functional.conv2d(x, weight.to(x.dtype), bias.detach().to(x.dtype), padding=margin)
    return _BiasGradient.apply(out, bias) if needs_grad else out


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
