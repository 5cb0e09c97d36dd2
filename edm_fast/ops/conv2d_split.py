"""3×3 and 1×1 convolutions of few images on a GPU's tensor cores, with the end of a residual branch.

There is no CPU kernel: `edm_fast.ops.conv2d` has the CPU's. The emulator runs the GPU's kernel in tests.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch

from edm_fast.ops import backends
from edm_fast.ops.library import LIBRARY
from edm_fast.ops.tensors import (
    DTYPE_CODES,
    address,
    channels_last,
    check_dense,
    check_device,
    check_images,
    check_same_dtype,
    check_shape,
    float_rows,
)

# kSplitTile in csrc/include/edm_fast/conv2d_split.h: pixels and channels of a tile.
TILE = 64
# Channels of x come in packs of 16 bytes.
PACK = 8
_ALIGNMENT = 16
# Elements of an image and of the weights, which the kernel counts with a tile more.
_MOST = 2**31 - 1
_MOST_OUT_CHANNELS = 65535 * TILE


@overload
def conv2d_split(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = ...,
    *,
    residual: torch.Tensor | None = ...,
    scale: float = ...,
    padding: int | None = ...,
    moments: Literal[False] = ...,
    arrived: torch.Tensor | None = ...,
    backend: str | None = ...,
) -> torch.Tensor: ...
@overload
def conv2d_split(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = ...,
    *,
    residual: torch.Tensor | None = ...,
    scale: float = ...,
    padding: int | None = ...,
    moments: Literal[True],
    arrived: torch.Tensor | None = ...,
    backend: str | None = ...,
) -> tuple[torch.Tensor, torch.Tensor]: ...
def conv2d_split(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    scale: float = 1.0,
    padding: int | None = None,
    moments: bool = False,
    arrived: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """out = (weight * x + bias + residual)·scale, [N, O, H', W'], channels-last, in x's dtype; without gradients.

    H' = H + 2·padding − k + 1. Factors have 16 bits, sums are float32. Where one sample's output has few tiles of 64
    pixels and 64 channels, the sum over taps and channels of x is split among blocks, whose parts are joined in a fixed
    order: a sample's result is the same, to the bit, in every batch and in every run.

    Args:
        x: [N, I, H, W] in float16 or bfloat16, I a multiple of 8. What is not dense channels-last is copied first.
        weight: [O, I, k, k], k = 3 or 1; converted to x's dtype and to channels-last if it is not that.
        bias: [O], any float dtype.
        residual: [N, O, H', W'], converted to x's dtype.
        scale: a number.
        padding: zeros on each side; k // 2 if not given.
        moments: also return [N, ceil(H'·W' / 64), O, 2] in float32: mean and biased variance of each channel of `out`,
            as it was rounded, over each 64 of its pixels; `group_norm_silu` takes them beside the images.
        arrived: int32 zeros on x's device, as many as the output has tiles or more; they are zeros again in the end.
            Made at each call if not given. Two calls at a time must not share them.
        backend: None (by device), "cuda" or "reference".

    Raises:
        ValueError, TypeError: an argument outside of this; its name comes first.
    """
    check_images("x", x)
    chosen = backends.choose(backend, x.device)
    if chosen == "cpu":
        raise ValueError("x: is on the CPU; conv2d_split runs on CUDA, and conv2d on the CPU")
    given = (x, weight, bias, residual)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in given):
        raise ValueError("x: gradients are needed, and conv2d_split has none; use torch.no_grad()")
    if padding is None:
        padding = weight.shape[-1] // 2 if weight.dim() == 4 else 0
    height, width = _check(x, weight, bias, residual, padding)
    if chosen == "reference":
        from edm_fast.reference.conv2d_split import conv2d_split as reference_conv2d_split

        return reference_conv2d_split(x, weight, bias, residual=residual, scale=scale, padding=padding, moments=moments)
    x, weight = channels_last(x), channels_last(weight.to(x.dtype))
    bias = None if bias is None else float_rows(bias)
    residual = None if residual is None else channels_last(residual.to(x.dtype))
    shape = (x.shape[0], weight.shape[0], height, width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    statistics = None
    if moments:
        statistics = torch.empty(moments_shape(out), dtype=torch.float32, device=x.device)
    if backend is None:
        torch.ops.edm_fast.conv2d_split_(x, weight, bias, residual, scale, padding, out, statistics, arrived)
    else:
        _run(backend, x, weight, bias, residual, scale, padding, out, statistics, arrived)
    return out if statistics is None else (out, statistics)


def moments_shape(images: torch.Tensor) -> list[int]:
    """Of the moments of images [N, C, H, W]."""
    samples, channels, height, width = images.shape
    return [samples, -(-height * width // TILE), channels, 2]


def tiles(samples: int, pixels: int, channels: int) -> int:
    """How many an output [samples, channels, …] of so many pixels has."""
    return samples * -(-pixels // TILE) * -(-channels // TILE)


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy whose memory begins at a multiple of 16 bytes."""
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def _check(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, padding: int
) -> tuple[int, int]:
    """The output's height and width."""
    check_images("x", x)
    samples, channels, height, width = x.shape
    kernel = weight.shape[-1] if weight.dim() == 4 else 0
    if kernel not in (1, 3) or tuple(weight.shape[1:]) != (channels, kernel, kernel):
        raise ValueError(
            f"weight: shape is {tuple(weight.shape)}; it must be (O, {channels}, 3, 3) or (O, {channels}, 1, 1)"
        )
    if channels % PACK:
        raise ValueError(f"x: {channels} channels; a multiple of {PACK} is needed")
    if padding < 0:
        raise ValueError(f"padding: got {padding}; it is not negative")
    size = height + 2 * padding - kernel + 1, width + 2 * padding - kernel + 1
    if min(size) < 1:
        raise ValueError(f"x: {height}x{width} pixels are too few for a {kernel}x{kernel} weight and padding {padding}")
    if (height + 2 * padding + TILE) * (width + 2 * padding) * channels > _MOST:
        raise ValueError(f"x: images of {channels}x{height}x{width}; elements are counted in 31 bits")
    if weight.shape[0] > _MOST_OUT_CHANNELS or (weight.shape[0] + TILE) * channels * kernel**2 > _MOST:
        raise ValueError(f"weight: shape is {tuple(weight.shape)}; elements are counted in 31 bits")
    for name, tensor, shape in (
        ("weight", weight, weight.shape),
        ("bias", bias, weight.shape[:1]),
        ("residual", residual, (samples, weight.shape[0], *size)),
    ):
        if tensor is not None:
            check_device(name, tensor, x.device)
            check_shape(name, tensor, shape)
    return size


def _check_kernel(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    padding: int,
    out: torch.Tensor,
    moments: torch.Tensor | None,
    arrived: torch.Tensor | None,
) -> None:
    """What the kernel needs."""
    if x.dtype not in (torch.float16, torch.bfloat16):
        raise TypeError(f"x: dtype is {x.dtype}; it must be float16 or bfloat16")
    size = _check(x, weight, bias, residual, padding)
    check_same_dtype("weight", weight, x.dtype)
    for name, images in (("x", x), ("weight", weight), ("residual", residual), ("out", out)):
        if images is not None:
            check_dense(name, images)
    if bias is not None:
        check_same_dtype("bias", bias, torch.float32)
    if residual is not None:
        check_same_dtype("residual", residual, x.dtype)
    check_device("out", out, x.device)
    check_shape("out", out, (x.shape[0], weight.shape[0], *size))
    check_same_dtype("out", out, x.dtype)
    if moments is not None:
        check_device("moments", moments, x.device)
        check_shape("moments", moments, moments_shape(out))
        check_same_dtype("moments", moments, torch.float32)
        if not moments.is_contiguous():
            raise ValueError(f"moments: strides are {tuple(moments.stride())}; it must be contiguous")
    if arrived is not None:
        check_device("arrived", arrived, x.device)
        check_same_dtype("arrived", arrived, torch.int32)
        needed = tiles(x.shape[0], size[0] * size[1], weight.shape[0])
        if arrived.dim() != 1 or arrived.shape[0] < needed or not arrived.is_contiguous():
            raise ValueError(f"arrived: shape is {tuple(arrived.shape)}; {needed} zeros side by side are needed")


def _run(
    backend: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    scale: float,
    padding: int,
    out: torch.Tensor,
    moments: torch.Tensor | None,
    arrived: torch.Tensor | None,
) -> None:
    _check_kernel(x, weight, bias, residual, padding, out, moments, arrived)
    # Copies, if any, must outlive the launch.
    x, weight = _aligned(x), _aligned(weight)
    samples, channels, height, width = x.shape
    out_channels, kernel = weight.shape[0], weight.shape[-1]
    pixels = out.shape[2] * out.shape[3]
    if not samples or not out_channels:
        return
    floats = backends.kernels(backend).conv2d_split_partial(samples, pixels, channels, out_channels, kernel)
    partial = None
    if floats:
        room = torch.empty([floats + _ALIGNMENT // 4], dtype=torch.float32, device=x.device)
        partial = room[-room.data_ptr() // 4 % (_ALIGNMENT // 4) :]
        if arrived is None:
            arrived = torch.zeros([tiles(samples, pixels, out_channels)], dtype=torch.int32, device=x.device)
    backends.launch(
        "conv2d_split",
        backend,
        x.device,
        (samples, height, width),
        (channels, out_channels),
        kernel,
        padding,
        DTYPE_CODES[x.dtype],
        x.data_ptr(),
        weight.data_ptr(),
        address(bias),
        address(residual),
        scale,
        out.data_ptr(),
        address(moments),
        (address(partial), address(arrived)),
    )


LIBRARY.define(
    "conv2d_split_(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, float scale, int padding, Tensor(a!) out, "
    "Tensor(b!)? moments, Tensor(c!)? arrived) -> ()"
)
LIBRARY.impl("conv2d_split_", lambda *args: _run("cuda", *args), "CUDA")


@torch.library.register_fake("edm_fast::conv2d_split_", lib=LIBRARY)
def _fake(*args: Any) -> None:
    x, weight, bias, residual, _scale, padding, out, moments, arrived = args
    _check_kernel(x, weight, bias, residual, padding, out, moments, arrived)
