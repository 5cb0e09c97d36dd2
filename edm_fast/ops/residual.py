"""The end of a residual branch: a sum of two images and a bias, scaled, with the moments that the next norm needs."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch.autograd.function import once_differentiable

from edm_fast.ops import backends
from edm_fast.ops.library import LIBRARY
from edm_fast.ops.tensors import (
    DTYPE_CODES,
    address,
    channels_last,
    check_dense,
    check_device,
    check_images,
    check_kernel_dtype,
    check_same_dtype,
    check_shape,
    check_slice,
    float_rows,
    pixel_stride,
)


@overload
def residual(
    a: torch.Tensor,
    b: torch.Tensor | None = ...,
    bias: torch.Tensor | None = ...,
    scale: float = ...,
    *,
    moments: Literal[False] = ...,
    out: torch.Tensor | None = ...,
    backend: str | None = ...,
) -> torch.Tensor: ...
@overload
def residual(
    a: torch.Tensor,
    b: torch.Tensor | None = ...,
    bias: torch.Tensor | None = ...,
    scale: float = ...,
    *,
    moments: Literal[True],
    out: torch.Tensor | None = ...,
    backend: str | None = ...,
) -> tuple[torch.Tensor, torch.Tensor]: ...
def residual(
    a: torch.Tensor,
    b: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    scale: float = 1.0,
    *,
    moments: bool = False,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """out = (a + b + bias)·scale, channels-last, in a's dtype with sums in float32; differentiable.

    Args:
        a, b: images [N, C, H, W]; float32, float16 or bfloat16. What is not dense channels-last is copied first, and b
            is converted to a's dtype. float64 runs on the reference.
        bias: [C], any float dtype.
        scale: a number.
        moments: also return [N, C, 2] in float32: mean and biased variance of each channel of `out`, as it was rounded,
            over its pixels. They carry no gradient: `group_norm_silu` takes them beside the images and differentiates
            by these.
        out: written and returned, without gradients. Like a in shape and dtype; channels-last, or a slice of the
            channels of such a tensor; may be a itself if that is dense.
        backend: None (by device), "cpu", "cuda" or "reference".

    Raises:
        ValueError, TypeError: an argument outside of this; its name comes first.
    """
    check_images("a", a)
    chosen = backends.choose_for("residual", backend, a)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (a, b, bias))
    if out is not None and needs_grad:
        raise ValueError("out: it cannot be written where gradients are needed; use torch.no_grad()")
    if chosen == "reference":
        return _reference(a, b, bias, scale, moments, out)
    a = channels_last(a)
    b = None if b is None else channels_last(b.to(a.dtype))
    bias = None if bias is None else float_rows(bias)
    if needs_grad:
        results = _Residual.apply(backend, a, b, bias, scale, moments)
    else:
        results = _forward(backend, a, b, bias, scale, moments, out)
    return results if moments else results[0]


def _reference(
    a: torch.Tensor,
    b: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: float,
    moments: bool,
    out: torch.Tensor | None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    from edm_fast.reference.residual import residual as reference_residual

    _check_inputs(a, b, bias)
    if out is not None:
        _check_out(a, out)
    if not moments:
        result = reference_residual(a, b, bias, scale)
        return result if out is None else out.copy_(result)
    result, statistics = reference_residual(a, b, bias, scale, moments=True)
    return result if out is None else out.copy_(result), statistics.to(torch.float32)


def _forward(
    backend: str | None,
    a: torch.Tensor,
    b: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: float,
    moments: bool,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    if out is None:
        out = torch.empty_like(a, memory_format=torch.channels_last)
    elif not torch.compiler.is_compiling():
        # Who saved the tensor, or looks at its version, must see that it is written to.
        torch.autograd.graph.increment_version(out)
    statistics = torch.empty([*a.shape[:2], 2], dtype=torch.float32, device=a.device) if moments else None
    if backend is None:
        torch.ops.edm_fast.residual_(a, b, bias, scale, out, statistics)
    else:
        _run(backend, a, b, bias, scale, out, statistics)
    return (out,) if statistics is None else (out, statistics)


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        backend: str | None,
        a: torch.Tensor,
        b: torch.Tensor | None,
        bias: torch.Tensor | None,
        scale: float,
        moments: bool,
    ) -> tuple[torch.Tensor, ...]:
        ctx.backend, ctx.scale = backend, scale
        results = _forward(backend, a, b, bias, scale, moments)
        if moments:
            ctx.mark_non_differentiable(results[1])
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, *_: torch.Tensor) -> Any:
        scaled, grad_bias = grad, None
        if ctx.scale != 1:
            [scaled] = _forward(ctx.backend, channels_last(grad), None, None, ctx.scale, False)
        if ctx.needs_input_grad[3]:
            grad_bias = grad.sum([0, 2, 3], dtype=torch.float32) * ctx.scale
        return None, scaled, scaled if ctx.needs_input_grad[2] else None, grad_bias, None, None


def _check_inputs(a: torch.Tensor, b: torch.Tensor | None, bias: torch.Tensor | None) -> None:
    if b is not None:
        check_device("b", b, a.device)
        check_shape("b", b, a.shape)
    if bias is not None:
        check_device("bias", bias, a.device)
        check_shape("bias", bias, [a.shape[1]])


def _check_out(a: torch.Tensor, out: torch.Tensor) -> None:
    check_device("out", out, a.device)
    check_shape("out", out, a.shape)
    check_same_dtype("out", out, a.dtype)
    check_slice("out", out)


def _check(
    a: torch.Tensor,
    b: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: float,
    out: torch.Tensor,
    moments: torch.Tensor | None,
) -> None:
    check_images("a", a)
    check_kernel_dtype("a", a.dtype)
    check_dense("a", a)
    _check_inputs(a, b, bias)
    if b is not None:
        check_same_dtype("b", b, a.dtype)
        check_dense("b", b)
    if bias is not None:
        check_same_dtype("bias", bias, torch.float32)
    _check_out(a, out)
    if moments is not None:
        check_device("moments", moments, a.device)
        check_shape("moments", moments, [*a.shape[:2], 2])
        check_same_dtype("moments", moments, torch.float32)
        if not moments.is_contiguous():
            raise ValueError(f"moments: strides are {tuple(moments.stride())}; it must be contiguous")


def _run(
    backend: str,
    a: torch.Tensor,
    b: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: float,
    out: torch.Tensor,
    moments: torch.Tensor | None,
) -> None:
    _check(a, b, bias, scale, out, moments)
    samples, channels, height, width = a.shape
    if not samples:
        return
    backends.launch(
        "residual",
        backend,
        a.device,
        (samples, height * width, channels),
        DTYPE_CODES[a.dtype],
        a.data_ptr(),
        address(b),
        address(bias),
        scale,
        out.data_ptr(),
        pixel_stride(out),
        address(moments),
    )


LIBRARY.define("residual_(Tensor a, Tensor? b, Tensor? bias, float scale, Tensor(a!) out, Tensor(b!)? moments) -> ()")
LIBRARY.impl("residual_", lambda *args: _run("cpu", *args), "CPU")
LIBRARY.impl("residual_", lambda *args: _run("cuda", *args), "CUDA")


@torch.library.register_fake("edm_fast::residual_", lib=LIBRARY)
def _fake(*args: Any) -> None:
    _check(*args)
