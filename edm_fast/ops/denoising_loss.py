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
    """What forward and backward read beside F."""

    images: torch.Tensor
    rows: torch.Tensor
    draw: int
    seeds: torch.Tensor | None
    noise: torch.Tensor | None


def denoising_loss(
    model_output: torch.Tensor,
    images: torch.Tensor,
    rows: torch.Tensor,
    seeds: int | Iterable[int] | torch.Tensor | None = None,
    draw: int = 0,
    *,
    noise: torch.Tensor | None = None,
    reduction: str = "sample",
    backend: str | None = None,
) -> torch.Tensor:
    """Σ w·(D - y)² of every sample, D = c_skip·(y + σ·n) + c_out·F; differentiable with respect to F.

    The noise n is made again from (seed, draw, element), in the forward and in the backward pass; D, n and the
    differences are never stored. D - y is computed as (c_skip - 1)·y + c_skip·σ·n + c_out·F, which loses no digits at
    small σ.

    Args:
        model_output: F [N, C, H, W] or [N, …], any float dtype. float64 with gradients runs on the reference.
        images: y, like F in shape; read as float32.
        rows: float32 [N, 7], of `noise_augment`.
        seeds, draw, noise: those of `noise_augment`.
        reduction: "sample" for sums float32 [N]; "none" for w·(D - y)² float32, like F in shape and layout.
        backend: None (by device), "cpu", "cuda" or "reference".

    Raises:
        ValueError, TypeError: an argument outside of this; its name comes first.
    """
    if reduction not in ("sample", "none"):
        raise ValueError(f"reduction: got {reduction!r}; it is 'sample' or 'none'")
    for name, tensor in (("images", images), ("noise", noise)):
        if tensor is not None:
            check_float(name, tensor.dtype)
    keys = None if seeds is None else seed_tensor(seeds, model_output.device).contiguous()
    inputs = _Inputs(
        viewable(images.detach()),
        rows.detach().contiguous(),
        as_word("draw", draw),
        keys,
        None if noise is None else viewable(noise.detach()),
    )
    _check(model_output, *inputs)
    if backends.choose_for("denoising_loss", backend, model_output) == "reference":
        from edm_fast.reference.noise_augment import denoising_error

        error = denoising_error(model_output, inputs.images, inputs.rows, keys, inputs.draw, inputs.noise)
        return error if reduction == "none" else error.flatten(1).sum(dim=1)
    if torch.is_grad_enabled() and model_output.requires_grad:
        return _DenoisingLoss.apply(backend, reduction, viewable(model_output), *inputs)
    return _loss(backend, reduction, viewable(model_output.detach()), inputs)


def _loss(backend: str | None, reduction: str, model_output: torch.Tensor, inputs: _Inputs) -> torch.Tensor:
    device = model_output.device
    loss = error = None
    if reduction == "sample":
        loss = torch.empty([model_output.shape[0]], dtype=torch.float32, device=device)
    else:
        error = torch.empty_like(model_output, dtype=torch.float32)
    if backend is None:
        torch.ops.edm_fast.denoising_loss_(model_output, *inputs, loss, error)
    else:
        _run(backend, model_output, *inputs, loss, error)
    result = error if loss is None else loss
    assert result is not None
    return result


class _DenoisingLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, backend: str | None, reduction: str, model_output: torch.Tensor, *inputs: Any
    ) -> torch.Tensor:
        found = _Inputs(*inputs)
        ctx.save_for_backward(model_output, found.images, found.rows, found.seeds, found.noise)
        ctx.backend, ctx.reduction, ctx.draw = backend, reduction, found.draw
        return _loss(backend, reduction, model_output, found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        model_output, images, rows, seeds, noise = ctx.saved_tensors
        loss_grad = error_grad = None
        if ctx.reduction == "sample":
            loss_grad = grad.to(torch.float32).contiguous()
        else:
            error_grad = viewable(grad)
        output_grad = torch.empty_like(model_output)
        arguments = (model_output, images, rows, ctx.draw, seeds, noise, loss_grad, error_grad, output_grad)
        if ctx.backend is None:
            torch.ops.edm_fast.denoising_loss_grad_(*arguments)
        else:
            _run_grad(ctx.backend, *arguments)
        return None, None, output_grad, None, None, None, None, None


def _check(
    model_output: torch.Tensor,
    images: torch.Tensor,
    rows: torch.Tensor,
    draw: int,
    seeds: torch.Tensor | None,
    noise: torch.Tensor | None,
) -> None:
    check_float("model_output", model_output.dtype)
    if model_output.dim() < 2:
        raise ValueError(f"model_output: shape is {tuple(model_output.shape)}; it must be [N, C, H, W] or [N, …]")
    check_device("images", images, model_output.device)
    check_shape("images", images, model_output.shape)
    check_float("images", images.dtype)
    check_noise_source(images, seeds, noise, needed=noise is None)
    check_rows(images, rows)


def _common(model_output: torch.Tensor, inputs: _Inputs) -> tuple[Any, ...]:
    return (
        kernel_shape(model_output.shape),
        inputs.draw,
        address(inputs.seeds),
        inputs.rows.data_ptr(),
        image_view("images", inputs.images),
        view_or_absent("noise", inputs.noise),
        image_view("model_output", model_output),
    )


def _run(backend: str, model_output: torch.Tensor, *rest: Any) -> None:
    inputs, (loss, error) = _Inputs(*rest[:5]), rest[5:]
    _check(model_output, *inputs)
    common = _common(model_output, inputs)
    backends.launch(
        "denoising_loss", backend, model_output.device, *common, address(loss), view_or_absent("error", error)
    )


def _run_grad(backend: str, model_output: torch.Tensor, *rest: Any) -> None:
    inputs, (loss_grad, error_grad, output_grad) = _Inputs(*rest[:5]), rest[5:]
    _check(model_output, *inputs)
    if error_grad is not None:
        check_shape("error_grad", error_grad, model_output.shape)
    backends.launch(
        "denoising_loss_grad",
        backend,
        model_output.device,
        *_common(model_output, inputs),
        address(loss_grad),
        view_or_absent("error_grad", error_grad),
        image_view("output_grad", output_grad),
    )


_INPUTS = "Tensor model_output, Tensor images, Tensor rows, int draw, Tensor? seeds, Tensor? noise"
LIBRARY.define(f"denoising_loss_({_INPUTS}, Tensor(a!)? loss, Tensor(b!)? error) -> ()")
LIBRARY.impl("denoising_loss_", lambda *args: _run("cpu", *args), "CPU")
LIBRARY.impl("denoising_loss_", lambda *args: _run("cuda", *args), "CUDA")
LIBRARY.define(f"denoising_loss_grad_({_INPUTS}, Tensor? loss_grad, Tensor? error_grad, Tensor(a!) output_grad) -> ()")
LIBRARY.impl("denoising_loss_grad_", lambda *args: _run_grad("cpu", *args), "CPU")
LIBRARY.impl("denoising_loss_grad_", lambda *args: _run_grad("cuda", *args), "CUDA")


@torch.library.register_fake("edm_fast::denoising_loss_", lib=LIBRARY)
def _fake(model_output: torch.Tensor, *rest: Any) -> None:
    _check(model_output, *rest[:5])


@torch.library.register_fake("edm_fast::denoising_loss_grad_", lib=LIBRARY)
def _fake_grad(model_output: torch.Tensor, *rest: Any) -> None:
    _check(model_output, *rest[:5])
