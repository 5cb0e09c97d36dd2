"""Dropout whose mask is a function of a seed, so that it is never stored.

On the CPU, PyTorch draws the mask in one thread and keeps it, in the images' dtype, for the backward pass; here it is
drawn again there. On CUDA, PyTorch's own is one kernel, and there is no .cu file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from edm_fast.ops import backends
from edm_fast.ops.library import LIBRARY
from edm_fast.ops.tensors import (
    DTYPE_CODES,
    channels_last,
    check_dense,
    check_device,
    check_images,
    check_kernel_dtype,
    check_same_dtype,
    check_shape,
    seed_tensor,
)


def dropout(x: torch.Tensor, p: float, seed: int | torch.Tensor | None = None) -> torch.Tensor:
    """x with elements 0 by probability p, the others times 1/(1 − p), in x's dtype; differentiable.

    On the CPU, float32, float16 and bfloat16 take the kernel, unless p is 1. It gives channels-last images; an
    element's number depends on the seed and its place in the batch, in channels-last order, alone, on any number of
    threads. Everything else is `torch.nn.functional.dropout`, with numbers of its own. NaN stays NaN, and Inf that is
    dropped becomes NaN, in both.

    Args:
        x: images [N, C, H, W].
        p: 0 … 1.
        seed: 64 bits, or int64 [] on the CPU; for the kernel. None draws one from torch's default generator, so that
            `torch.manual_seed` decides.

    Raises:
        ValueError, TypeError: an argument outside of this; its name comes first.
    """
    check_images("x", x)
    if not isinstance(p, (int, float)):
        raise TypeError(f"p: got {p!r}; it is a number")
    if not 0 <= p <= 1:
        raise ValueError(f"p: got {p}; it is a probability")
    if x.device.type != "cpu" or x.dtype == torch.float64 or p == 1:
        if seed is not None:
            raise ValueError(f"seed: it is for the kernel, and {x.dtype} on {x.device} with p = {p} has none")
        return functional.dropout(x, p)
    if seed is None:
        seed = torch.randint(2**63 - 1, [], device=x.device)
    elif isinstance(seed, torch.Tensor):
        check_device("seed", seed, x.device)
    else:
        [seed] = seed_tensor(seed, x.device)
    return _Dropout.apply(channels_last(x), seed, float(p))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, seed: torch.Tensor, p: float) -> torch.Tensor:
        ctx.save_for_backward(seed)
        ctx.p = p
        return _dropped(x, seed, p)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (seed,) = ctx.saved_tensors
        return _Dropout.apply(channels_last(grad), seed, ctx.p), None, None


def _dropped(x: torch.Tensor, seed: torch.Tensor, p: float) -> torch.Tensor:
    out = torch.empty_like(x, memory_format=torch.channels_last)
    torch.ops.edm_fast.dropout_(x, seed, p, out)
    return out


def _check(x: torch.Tensor, seed: torch.Tensor, p: float, out: torch.Tensor) -> None:
    check_images("x", x)
    check_kernel_dtype("x", x.dtype)
    check_dense("x", x)
    check_device("seed", seed, x.device)
    check_shape("seed", seed, [])
    check_same_dtype("seed", seed, torch.int64)
    if not 0 <= p < 1:
        raise ValueError(f"p: got {p}; the kernel takes 0 <= p < 1")
    check_device("out", out, x.device)
    check_shape("out", out, x.shape)
    check_same_dtype("out", out, x.dtype)
    check_dense("out", out)


def _run(x: torch.Tensor, seed: torch.Tensor, p: float, out: torch.Tensor) -> None:
    _check(x, seed, p, out)
    code = DTYPE_CODES[x.dtype]
    backends.launch("dropout", "cpu", x.device, x.numel(), code, p, seed.data_ptr(), x.data_ptr(), out.data_ptr())


LIBRARY.define("dropout_(Tensor x, Tensor seed, float p, Tensor(a!) out) -> ()")
LIBRARY.impl("dropout_", _run, "CPU")


@torch.library.register_fake("edm_fast::dropout_", lib=LIBRARY)
def _fake(*args: Any) -> None:
    _check(*args)
