"""Tensors as the kernels see them: a shape [N, C, P], and views of pointers and strides."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Sequence

import torch

# The codes of csrc/include/edm_fast/dtypes.h.
DTYPE_CODES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}

View = tuple[int, int, int, int, int]
ABSENT: View = (0, 1, 0, 0, 0)

_MASK64 = (1 << 64) - 1


def kernel_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """(N, C, P): [N, C, H, W] has P = H·W; any other shape counts as one channel."""
    if len(shape) == 4:
        return shape[0], shape[1], shape[2] * shape[3]
    return shape[0], 1, math.prod(shape[1:])


def image_view(name: str, tensor: torch.Tensor) -> View:
    """(pointer, dtype code, strides of sample, channel and pixel in elements) of a tensor [N, C, H, W] or [N, …].

    Contiguous and channels-last tensors have one, and so do slices of them by sample or channel. TypeError for a dtype
    that is not a float; ValueError if the pixels of an image are not evenly spaced in memory.
    """
    check_float(name, tensor.dtype)
    code = DTYPE_CODES[tensor.dtype]
    if tensor.is_contiguous():
        _, channels, pixels = kernel_shape(tensor.shape)
        return tensor.data_ptr(), code, channels * pixels, pixels, 1
    if tensor.dim() == 4:
        _, _, height, width = tensor.shape
        sample, channel, row, column = tensor.stride()
        pixel = column if width > 1 else row
        if height > 1 and width > 1 and row != width * column:
            raise ValueError(f"{name}: strides {tuple(tensor.stride())} of shape {tuple(tensor.shape)} skip pixels")
        return tensor.data_ptr(), code, sample, channel, pixel
    if not tensor[0].is_contiguous():
        raise ValueError(f"{name}: a tensor of {tensor.dim()} dimensions must be contiguous within each sample")
    return tensor.data_ptr(), code, tensor.stride(0), math.prod(tensor.shape[1:]), 1


def viewable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself if `image_view` covers it, else a contiguous copy."""
    try:
        image_view("tensor", tensor)
    except ValueError:
        return tensor.contiguous()
    return tensor


def seed_tensor(seeds: int | Iterable[int] | torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Seeds as int64 [N] on `device`. Python integers from -2⁶³ to 2⁶⁴-1 are taken modulo 2⁶⁴: the 64 bits are the key.

    TypeError for anything that is not an integer, ValueError for one outside 64 bits or a tensor that is not 1-D.
    """
    if isinstance(seeds, torch.Tensor):
        if seeds.dtype.is_floating_point or seeds.dtype.is_complex or seeds.dtype == torch.bool:
            raise TypeError(f"seeds: dtype is {seeds.dtype}; seeds are integers")
        if seeds.dim() != 1:
            raise ValueError(f"seeds: shape is {tuple(seeds.shape)}; a 1-D tensor is needed, one seed per sample")
        if seeds.is_meta:
            raise ValueError("seeds: on meta, where tensors have no values")
        if seeds.layout != torch.strided:
            raise TypeError(f"seeds: layout is {seeds.layout}; it must be torch.strided")
        return seeds.to(device=device, dtype=torch.int64)
    if isinstance(seeds, (str, bytes, bytearray, dict, set, frozenset)):
        raise TypeError(f"seeds: got a {type(seeds).__name__}; seeds are integers in order, one per sample")
    try:
        listed = [seeds] if isinstance(seeds, numbers.Integral) else list(seeds)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"seeds: got {seeds!r}; seeds are integers") from None
    words = []
    for seed in listed:
        try:
            value = operator.index(seed)
        except TypeError:
            raise TypeError(f"seeds: got {seed!r}; seeds are integers") from None
        if isinstance(seed, bool):
            raise TypeError(f"seeds: got {seed!r}; seeds are integers")
        if not -(1 << 63) <= value <= _MASK64:
            raise ValueError(f"seeds: {value} does not fit in 64 bits")
        value &= _MASK64
        words.append(value - (1 << 64) if value >> 63 else value)
    return torch.tensor(words, dtype=torch.int64, device=device)


def check_float(name: str, dtype: torch.dtype) -> None:
    if dtype not in DTYPE_CODES:
        raise TypeError(f"{name}: dtype is {dtype}; it must be float64, float32, float16 or bfloat16")


def check_writable(name: str, tensor: torch.Tensor) -> None:
    """ValueError for an expanded tensor, in which several elements share a place."""
    if any(stride == 0 and extent > 1 for stride, extent in zip(tensor.stride(), tensor.shape, strict=True)):
        raise ValueError(f"{name}: strides {tensor.stride()} of shape {tuple(tensor.shape)} overlap; it is written to")


def check_device(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name}: is on {tensor.device}; all tensors must be on {device}")


def check_shape(name: str, tensor: torch.Tensor, shape: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name}: shape is {tuple(tensor.shape)}; it must be {tuple(shape)}")


def pixel_stride(tensor: torch.Tensor) -> int | None:
    """Elements from a pixel of [N, C, H, W] to the next, if channels are adjacent and rows and samples follow densely.

    Channels-last tensors have it, C, and so have slices of their channels. None for any other layout.
    """
    samples, channels, height, width = tensor.shape
    sample, channel, row, column = tensor.stride()
    if width > 1:
        pixel = column
    elif height > 1:
        pixel = row
    else:
        pixel = sample if samples > 1 else channels
    follows = (
        (samples <= 1 or sample == height * width * pixel)
        and (channels <= 1 or channel == 1)
        and (height <= 1 or row == width * pixel)
    )
    return pixel if follows and pixel >= channels else None


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """The images [N, C, H, W] themselves if they are dense and channels-last, else a copy that is.

    A tensor of other dimensions is returned for the op's check to name it.
    """
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def channels_last_or_slice(tensor: torch.Tensor) -> torch.Tensor:
    """As `channels_last`, but whatever has a `pixel_stride` is not copied."""
    return tensor if tensor.dim() == 4 and pixel_stride(tensor) is not None else channels_last(tensor)


def check_images(name: str, tensor: torch.Tensor) -> None:
    """ValueError or TypeError unless the tensor is [N, C, H, W] with pixels and channels, of a floating-point dtype."""
    if tensor.dim() != 4 or 0 in tensor.shape[1:]:
        raise ValueError(f"{name}: shape is {tuple(tensor.shape)}; it must be [N, C, H, W] with C, H and W at least 1")
    check_float(name, tensor.dtype)


def check_kernel_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"{name}: dtype is {dtype}; the kernels take float32, float16 and bfloat16")


def check_same_dtype(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: dtype is {tensor.dtype}; it must be {dtype}")


def check_dense(name: str, tensor: torch.Tensor) -> None:
    if pixel_stride(tensor) != tensor.shape[1]:
        raise ValueError(
            f"{name}: strides {tuple(tensor.stride())} of shape {tuple(tensor.shape)} are not dense channels-last"
        )


def check_slice(name: str, tensor: torch.Tensor) -> None:
    if pixel_stride(tensor) is None:
        raise ValueError(
            f"{name}: strides {tuple(tensor.stride())} of shape {tuple(tensor.shape)} are neither channels-last nor a "
            "slice of the channels of such a tensor"
        )


def float_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Rows of numbers in float32 whose elements are adjacent; the rows may be apart."""
    rows = tensor.to(torch.float32)
    return rows if rows.shape[-1] <= 1 or rows.stride(-1) == 1 else rows.contiguous()


def address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
