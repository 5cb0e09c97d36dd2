"""The weighted squared error of a denoiser, from the raw output of its network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from edm_fast.ops import backends
from edm_fast.ops.library import LIBRARY
from edm_fast.ops.noise_augment import check_noise_source, check_rows, view_or_absent
from edm_fast.ops.randn import as_word
from edm_fast.ops.tensors import (
    address,
    check_device,
    check_float,
    check_shape,
    image_view,
    kernel_shape,
    seed_tensor,
    viewable,
)


class _Inputs(NamedTuple):
    """What the loss is made of beside F."""

    images: torch.Tensor
    rows: torch.Tensor
    draw: int
    seeds: torch.Tensor | None
    noise: torch.Tensor | None
    net_input: torch.Tensor | None


def denoising_loss(
    model_output: torch.Tensor,
    images: torch.Tensor,
    rows: torch.Tensor,
    seeds: int | Iterable[int] | torch.Tensor | None = None,
    draw: int = 0,
    *,
    noise: torch.Tensor | None = None,
    net_input: torch.Tensor | None = None,
    reduction: str = "sample",
    backend: str | None = None,
) -> torch.Tensor:
    """Σ w·(D - y)² of every sample, D = c_skip·(y + σ·n) + c_out·F; differentiable with respect to F.

    The noise n is made again from (seed, draw, element); D and n are never stored. The pass also makes the derivative
    by F where one is needed, so that the backward pass is a product. D - y is computed as
    (c_skip - 1)·y + c_skip·σ·n + c_out·F, which loses no digits at small σ.

    Args:
        model_output: F [N, C, H, W] or [N, …], any float dtype. float64 with gradients runs on the reference.
        images: y, like F in shape; read as float32.
        rows: float32 [N, 7], of `noise_augment`.
        seeds, draw, noise: those of `noise_augment`.
        net_input: what `noise_augment` returned, like F in shape, if nothing has written to it since. The σ·n of
            samples with σ ≥ 1/16 is then net_input/c_in - y in place of one drawn again, which is faster and about as
            exact as c_skip·x + c_out·F - y in float32. None, or any dtype but float32, draws all of it.
        reduction: "sample" for sums float32 [N]; "none" for w·(D - y)² float32, like F in shape and layout.
        backend: None (by device), "cpu", "cuda" or "reference".

    Raises:
        ValueError, TypeError: an argument outside of this; its name comes first.
    """
    if reduction not in ("sample", "none"):
        raise ValueError(f"reduction: got {reduction!r}; it is 'sample' or 'none'")
    for name, tensor in (
        ("model_output", model_output),
        ("images", images),
        ("noise", noise),
        ("net_input", net_input),
    ):
        if tensor is not None:
            check_float(name, tensor.dtype)
            if tensor.dim() < 2:
                raise ValueError(f"{name}: shape is {tuple(tensor.shape)}; it must be [N, C, H, W] or [N, …]")
    inputs = _Inputs(
        viewable(images.detach()),
        rows.detach().contiguous(),
        as_word("draw", draw),
        None if seeds is None else seed_tensor(seeds, model_output.device).contiguous(),
        None if noise is None else viewable(noise.detach()),
        None if net_input is None else viewable(net_input.detach()),
    )
    _check(model_output, *inputs)
    if backends.choose_for("denoising_loss", backend, model_output) == "reference":
        from edm_fast.reference.noise_augment import denoising_error

        error = denoising_error(model_output, inputs.images, inputs.rows, inputs.seeds, inputs.draw, inputs.noise)
        return error if reduction == "none" else error.flatten(1).sum(dim=1)
    if torch.is_grad_enabled() and model_output.requires_grad:
        return _DenoisingLoss.apply(backend, reduction, viewable(model_output), *inputs)
    return _loss(backend, reduction, viewable(model_output.detach()), inputs)


def _loss(
    backend: str | None,
    reduction: str,
    model_output: torch.Tensor,
    inputs: _Inputs,
    slope: torch.Tensor | None = None,
) -> torch.Tensor:
    device = model_output.device
    loss = error = None
    if reduction == "sample":
        loss = torch.empty([model_output.shape[0]], dtype=torch.float32, device=device)
    else:
        error = torch.empty_like(model_output, dtype=torch.float32)
    if backend is None:
        torch.ops.edm_fast.denoising_loss_(model_output, *inputs, loss, error, slope)
    else:
        _run(backend, model_output, *inputs, loss, error, slope)
    result = error if loss is None else loss
    assert result is not None
    return result


class _DenoisingLoss(torch.autograd.Function):
    """Keeps the error's derivative by F in float32, and not what it was made from."""

    @staticmethod
    def forward(
        ctx: Any, backend: str | None, reduction: str, model_output: torch.Tensor, *inputs: Any
    ) -> torch.Tensor:
        slope = torch.empty_like(model_output, dtype=torch.float32)
        result = _loss(backend, reduction, model_output, _Inputs(*inputs), slope)
        ctx.save_for_backward(slope)
        ctx.dtype = model_output.dtype
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        if grad.dim() != slope.dim():
            grad = grad.reshape(-1, *[1] * (slope.dim() - 1))
        return None, None, (slope * grad).to(ctx.dtype), *[None] * len(_Inputs._fields)


def _check(
    model_output: torch.Tensor,
    images: torch.Tensor,
    rows: torch.Tensor,
    draw: int,
    seeds: torch.Tensor | None,
    noise: torch.Tensor | None,
    net_input: torch.Tensor | None,
) -> None:
    check_float("model_output", model_output.dtype)
    check_device("images", images, model_output.device)
    check_shape("images", images, model_output.shape)
    check_float("images", images.dtype)
    check_noise_source(images, seeds, noise, needed=noise is None)
    check_rows(images, rows)
    if net_input is not None:
        check_device("net_input", net_input, model_output.device)
        check_shape("net_input", net_input, model_output.shape)
        check_float("net_input", net_input.dtype)


def _run(backend: str, model_output: torch.Tensor, *rest: Any) -> None:
    inputs, (loss, error, slope) = _Inputs(*rest[:-3]), rest[-3:]
    _check(model_output, *inputs)
    readable = inputs.net_input is not None and inputs.net_input.dtype == torch.float32
    backends.launch(
        "denoising_loss",
        backend,
        model_output.device,
        kernel_shape(model_output.shape),
        inputs.draw,
        address(inputs.seeds),
        inputs.rows.data_ptr(),
        image_view("images", inputs.images),
        view_or_absent("noise", inputs.noise),
        view_or_absent("net_input", inputs.net_input if readable else None),
        image_view("model_output", model_output),
        address(loss),
        view_or_absent("error", error),
        view_or_absent("slope", slope),
    )


LIBRARY.define(
    "denoising_loss_(Tensor model_output, Tensor images, Tensor rows, int draw, Tensor? seeds, Tensor? noise, "
    "Tensor? net_input, Tensor(a!)? loss, Tensor(b!)? error, Tensor(c!)? slope) -> ()"
)
LIBRARY.impl("denoising_loss_", lambda *args: _run("cpu", *args), "CPU")
LIBRARY.impl("denoising_loss_", lambda *args: _run("cuda", *args), "CUDA")


@torch.library.register_fake("edm_fast::denoising_loss_", lib=LIBRARY)
def _fake(model_output: torch.Tensor, *rest: Any) -> None:
    _check(model_output, *rest[:-3])
