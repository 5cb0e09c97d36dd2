"""The arguments of group_norm_silu: their names, what is checked of them, and how the binding takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from edm_fast.ops.conv2d_split import TILE
from edm_fast.ops.resample import Filter, check_extents
from edm_fast.ops.tensors import (
    DTYPE_CODES,
    address,
    check_dense,
    check_device,
    check_images,
    check_kernel_dtype,
    check_same_dtype,
    check_shape,
    check_slice,
    pixel_stride,
)

# Pixels of a chunk, where moments come by chunks: those of `conv2d_split`.
CHUNK = TILE


class Inputs(NamedTuple):
    """The tensors that have gradients; see `group_norm_silu`."""

    x: torch.Tensor
    x2: torch.Tensor | None
    addend: torch.Tensor | None
    weight: torch.Tensor
    bias: torch.Tensor
    pre_bias: torch.Tensor | None
    scale: torch.Tensor | None
    shift: torch.Tensor | None


class Settings(NamedTuple):
    """The numbers; see `group_norm_silu`. direction, padding and taps are a `Filter`."""

    sum_scale: float
    num_groups: int
    eps: float
    silu: bool
    direction: int
    padding: int
    taps: Sequence[float]

    def filter(self) -> Filter:
        return Filter(self.direction, self.padding, tuple(self.taps))


class Outputs(NamedTuple):
    """What the forward writes; mean and rstd [N, groups] in float32 are what the backward needs."""

    out: torch.Tensor
    plain: torch.Tensor | None
    sum: torch.Tensor | None
    mean: torch.Tensor | None
    rstd: torch.Tensor | None


class Received(NamedTuple):
    """What the backward reads besides: the statistics, and the gradients of what the forward wrote."""

    mean: torch.Tensor
    rstd: torch.Tensor
    out: torch.Tensor
    plain: torch.Tensor | None
    sum: torch.Tensor | None


class Gradients(NamedTuple):
    """What the backward writes; those of weight and bias are rows [N, C], one per sample."""

    x: torch.Tensor | None
    x2: torch.Tensor | None
    pre_bias: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    scale: torch.Tensor | None
    shift: torch.Tensor | None


def row_stride(rows: torch.Tensor | None) -> int:
    """Elements from a sample to the next; 0: one row for all."""
    return 0 if rows is None or rows.shape[0] == 1 else rows.stride(0)


def check_shapes(inputs: Inputs, settings: Settings, moments: Sequence[torch.Tensor]) -> None:
    """What holds for every backend, before any conversion."""
    x, x2, addend = inputs.x, inputs.x2, inputs.addend
    check_images("x", x)
    check_extents("x", x, settings.filter())
    samples, channels, height, width = x.shape
    for name, tensor in (*inputs._asdict().items(), *((f"moments[{i}]", part) for i, part in enumerate(moments))):
        if tensor is not None:
            check_device(name, tensor, x.device)
    if x2 is not None:
        if addend is not None:
            raise ValueError("addend: it cannot be given together with x2")
        check_images("x2", x2)
        check_shape("x2", x2, [samples, x2.shape[1], height, width])
        channels += x2.shape[1]
    if addend is not None:
        check_shape("addend", addend, x.shape)
    if settings.num_groups < 1 or channels % settings.num_groups:
        raise ValueError(f"num_groups: got {settings.num_groups}; it must divide {channels} channels")
    check_shape("weight", inputs.weight, [channels])
    check_shape("bias", inputs.bias, [channels])
    for name in ("pre_bias", "scale", "shift"):
        rows = getattr(inputs, name)
        if rows is not None and tuple(rows.shape) not in ((samples, channels), (1, channels)):
            raise ValueError(f"{name}: shape is {tuple(rows.shape)}; it must be ({samples} or 1, {channels})")
    if (inputs.scale is None) != (inputs.shift is None):
        missing = "scale" if inputs.scale is None else "shift"
        raise ValueError(f"{missing}: scale and shift are given together or not at all")
    if moments:
        sources = [source for source in (x, x2) if source is not None]
        if addend is not None:
            raise ValueError("moments: they cannot be given together with an addend")
        if len(moments) != len(sources):
            raise ValueError(f"moments: got {len(moments)} tensors for {len(sources)} sources")
        for i, (part, source) in enumerate(zip(moments, sources, strict=True)):
            chunks = [-(-height * width // CHUNK)] if moments[0].dim() == 4 else []
            check_shape(f"moments[{i}]", part, [samples, *chunks, source.shape[1], 2])
            check_same_dtype(f"moments[{i}]", part, torch.float32)


def _check_inputs(inputs: Inputs, settings: Settings, moments: Sequence[torch.Tensor]) -> None:
    """What the kernels need."""
    check_kernel_dtype("x", inputs.x.dtype)
    check_shapes(inputs, settings, moments)
    check_slice("x", inputs.x)
    if inputs.x2 is not None:
        check_same_dtype("x2", inputs.x2, inputs.x.dtype)
        check_slice("x2", inputs.x2)
    if inputs.addend is not None:
        check_same_dtype("addend", inputs.addend, inputs.x.dtype)
        check_dense("addend", inputs.addend)
    for name in ("weight", "bias", "pre_bias", "scale", "shift"):
        rows = getattr(inputs, name)
        if rows is not None:
            check_same_dtype(name, rows, torch.float32)
            if rows.shape[-1] > 1 and rows.stride(-1) != 1:
                raise ValueError(f"{name}: strides are {tuple(rows.stride())}; channels must be adjacent")
    if row_stride(inputs.scale) != row_stride(inputs.shift):
        raise ValueError("shift: its rows must be as far apart as those of scale")


def _check_image(name: str, tensor: torch.Tensor | None, x: torch.Tensor, shape: Sequence[int]) -> None:
    if tensor is not None:
        check_device(name, tensor, x.device)
        check_shape(name, tensor, shape)
        check_same_dtype(name, tensor, x.dtype)
        check_dense(name, tensor)


def _check_rows(name: str, tensor: torch.Tensor | None, x: torch.Tensor, shape: Sequence[int]) -> None:
    if tensor is not None:
        check_device(name, tensor, x.device)
        check_shape(name, tensor, shape)
        check_same_dtype(name, tensor, torch.float32)
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: strides are {tuple(tensor.stride())}; it must be contiguous")


def check(inputs: Inputs, settings: Settings, moments: Sequence[torch.Tensor], outputs: Outputs) -> None:
    _check_inputs(inputs, settings, moments)
    x, kernel = inputs.x, settings.filter()
    resampled = [x.shape[0], inputs.weight.shape[0], kernel.extent(x.shape[2]), kernel.extent(x.shape[3])]
    _check_image("out", outputs.out, x, resampled)
    _check_image("plain", outputs.plain, x, resampled)
    if (outputs.sum is None) != (inputs.addend is None):
        raise ValueError("sum: it is given with an addend, and only then")
    _check_image("sum", outputs.sum, x, x.shape)
    for name in ("mean", "rstd"):
        _check_rows(name, getattr(outputs, name), x, [x.shape[0], settings.num_groups])


def check_grad(inputs: Inputs, settings: Settings, given: Received, results: Gradients) -> None:
    _check_inputs(inputs, settings, ())
    x, kernel = inputs.x, settings.filter()
    rows = [x.shape[0], inputs.weight.shape[0]]
    resampled = [*rows, kernel.extent(x.shape[2]), kernel.extent(x.shape[3])]
    _check_rows("mean", given.mean, x, [x.shape[0], settings.num_groups])
    _check_rows("rstd", given.rstd, x, [x.shape[0], settings.num_groups])
    _check_image("grad_out", given.out, x, resampled)
    _check_image("grad_plain", given.plain, x, resampled)
    _check_image("grad_sum", given.sum, x, x.shape)
    _check_image("grad_x", results.x, x, x.shape)
    if results.x2 is not None:
        if inputs.x2 is None:
            raise ValueError("grad_x2: there is no x2")
        _check_image("grad_x2", results.x2, x, inputs.x2.shape)
    for name in ("pre_bias", "weight", "bias", "scale", "shift"):
        _check_rows(f"grad_{name}", getattr(results, name), x, rows)


def binding_arguments(
    inputs: Inputs, settings: Settings, moments: Sequence[torch.Tensor], outputs: Sequence[Any]
) -> Any:
    """The arguments of the binding `group_norm_silu`; `outputs` are out, plain, sum, mean, rstd."""
    x, x2 = inputs.x, inputs.x2
    out, plain, total, mean, rstd = (address(output) for output in outputs)
    first, second = [*(address(part) for part in moments), 0, 0][:2]
    chunk = CHUNK if moments and moments[0].dim() == 4 else x.shape[2] * x.shape[3]
    return (
        (x.shape[0], x.shape[2], x.shape[3]),
        DTYPE_CODES[x.dtype],
        (x.data_ptr(), x.shape[1], pixel_stride(x)),
        (0, 0, 0) if x2 is None else (x2.data_ptr(), x2.shape[1], pixel_stride(x2)),
        (address(inputs.addend), settings.sum_scale, total),
        (first, second, chunk),
        (inputs.weight.data_ptr(), inputs.bias.data_ptr(), settings.num_groups, settings.eps, settings.silu),
        (address(inputs.pre_bias), row_stride(inputs.pre_bias)),
        (address(inputs.scale), row_stride(inputs.scale)),
        (address(inputs.shift), row_stride(inputs.shift)),
        (settings.direction, settings.padding, list(settings.taps)),
        (out, plain, mean, rstd),
    )
