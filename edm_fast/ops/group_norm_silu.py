"""GroupNorm with everything that surrounds it in EDM's U-Nets, in one pass over the images."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from edm_fast.ops import backends
from edm_fast.ops.group_norm_silu_arguments import (
    Gradients,
    Inputs,
    Outputs,
    Received,
    Settings,
    binding_arguments,
    check,
    check_grad,
    check_shapes,
    row_stride,
)
from edm_fast.ops.library import LIBRARY
from edm_fast.ops.resample import check_extents, resampling_filter
from edm_fast.ops.tensors import address, channels_last, channels_last_or_slice, check_images, float_rows


def group_norm_silu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    num_groups: int,
    *,
    x2: torch.Tensor | None = None,
    addend: torch.Tensor | None = None,
    sum_scale: float = 1.0,
    pre_bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = True,
    up: bool = False,
    down: bool = False,
    taps: Sequence[float] = (1, 1),
    plain: bool = False,
    moments: Sequence[torch.Tensor] | None = None,
    backend: str | None = None,
) -> Any:
    """out, or (out, plain), (out, sum), (out, plain, sum): with `plain=True` and with an addend; differentiable.

        x    = cat(x, x2), or sum = (x + addend)·sum_scale
        h    = x + pre_bias
        u    = (h − mean) / √(variance + eps) · weight + bias        per sample and group of channels
        v    = u·(1 + scale) + shift
        y    = v / (1 + e^−v)                                        with `silu`, else v
        out  = resample(y)      plain = resample(x)

    Neither the concatenation nor h, u, v, y are stored. The arithmetic is in float32, what is stored in x's dtype, and
    channels-last.

    Args:
        x, x2: images [N, C0, H, W] and [N, C1, H, W], C = C0 + C1; float32, float16 or bfloat16. What is neither
            channels-last nor a slice of the channels of such a tensor is copied first; x2 is converted to x's dtype.
            float64 runs on the reference.
        weight, bias: [C], any float dtype.
        num_groups: divides C.
        addend: like x, in place of x2.
        sum_scale: a number, for the addend.
        pre_bias: rows [N or 1, C], any float dtype.
        scale, shift: likewise; both or neither.
        eps: added to the variance.
        silu: whether SiLU follows.
        up, down, taps: as for `edm_fast.ops.resample`, with its default padding; or neither.
        plain: whether `plain` is returned.
        moments: for x, or for x and x2: [N, Ci, 2] in float32 as `edm_fast.ops.residual` returns them for these very
            images, which saves taking them again; or [N, chunks, Ci, 2] as `conv2d_split` does, which the CPU's kernel
            does not take. Not with an addend. Gradients are the same with and without.
        backend: None (by device), "cpu", "cuda" or "reference".

    Raises:
        ValueError, TypeError: an argument outside of this; its name comes first.
    """
    kernel = resampling_filter(up, down, taps)
    check_images("x", x)
    chosen = backends.choose_for("group_norm_silu", backend, x)
    settings = Settings(sum_scale, num_groups, eps, silu, *kernel)
    given = Inputs(x, x2, addend, weight, bias, pre_bias, scale, shift)
    sources = tuple(moments or ())
    if chosen == "reference":
        from edm_fast.reference.group_norm_silu import group_norm_silu as reference_group_norm_silu

        check_shapes(given, settings, sources)
        return reference_group_norm_silu(
            x,
            weight,
            bias,
            num_groups,
            x2=x2,
            addend=addend,
            sum_scale=sum_scale,
            pre_bias=pre_bias,
            scale=scale,
            shift=shift,
            eps=eps,
            silu=silu,
            up=up,
            down=down,
            taps=taps,
            plain=plain,
        )
    inputs = _converted(given)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        results = _GroupNormSilu.apply(backend, settings, plain, sources, *inputs)
    else:
        results = _forward(backend, settings, plain, sources, inputs, None, None)
    return results[0] if len(results) == 1 else results


def _converted(given: Inputs) -> Inputs:
    """The inputs in the layouts and dtypes of the kernels."""
    dtype = given.x.dtype
    scale, shift = (None if rows is None else float_rows(rows) for rows in (given.scale, given.shift))
    if scale is not None and shift is not None and row_stride(scale) != row_stride(shift):
        # The kernels have one stride for both.
        scale, shift = scale.expand(given.x.shape[0], -1).contiguous(), shift.expand(given.x.shape[0], -1).contiguous()
    return Inputs(
        channels_last_or_slice(given.x),
        None if given.x2 is None else channels_last_or_slice(given.x2.to(dtype)),
        None if given.addend is None else channels_last(given.addend.to(dtype)),
        float_rows(given.weight),
        float_rows(given.bias),
        None if given.pre_bias is None else float_rows(given.pre_bias),
        scale,
        shift,
    )


def _forward(
    backend: str | None,
    settings: Settings,
    plain: bool,
    moments: Sequence[torch.Tensor],
    inputs: Inputs,
    mean: torch.Tensor | None,
    rstd: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    x = inputs.x
    kernel = settings.filter()
    check_extents("x", x, kernel)
    shape = [x.shape[0], inputs.weight.shape[0], kernel.extent(x.shape[2]), kernel.extent(x.shape[3])]
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    outputs = Outputs(
        out,
        torch.empty_like(out) if plain else None,
        None if inputs.addend is None else _images_like(x),
        mean,
        rstd,
    )
    if backend is None:
        torch.ops.edm_fast.group_norm_silu_(*inputs, *settings, moments, *outputs)
    else:
        _run(backend, inputs, settings, moments, outputs)
    # By name: PyTorch 2.8 compiles no slice of a named tuple.
    return tuple(image for image in (outputs.out, outputs.plain, outputs.sum) if image is not None)


def _images_like(x: torch.Tensor) -> torch.Tensor:
    """An empty tensor of x's shape and dtype, dense and channels-last."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


class _GroupNormSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        backend: str | None,
        settings: Settings,
        plain: bool,
        moments: tuple[torch.Tensor, ...],
        *tensors: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        inputs = Inputs(*tensors)  # type: ignore[arg-type]
        x = inputs.x
        mean, rstd = (
            torch.empty([x.shape[0], settings.num_groups], dtype=torch.float32, device=x.device) for _ in range(2)
        )
        ctx.backend, ctx.settings, ctx.plain = backend, settings, plain
        ctx.save_for_backward(*inputs, mean, rstd)
        return _forward(backend, settings, plain, moments, inputs, mean, rstd)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        *tensors, mean, rstd = ctx.saved_tensors
        inputs = Inputs(*tensors)
        x, x2, addend, weight, bias, pre_bias, scale, shift = ctx.needs_input_grad[4:]
        rows = [inputs.x.shape[0], inputs.weight.shape[0]]

        def empty_rows(needed: bool) -> torch.Tensor | None:
            return torch.empty(rows, dtype=torch.float32, device=inputs.x.device) if needed else None

        results = Gradients(
            _images_like(inputs.x) if x or addend else None,
            _images_like(inputs.x2) if x2 and inputs.x2 is not None else None,
            empty_rows(pre_bias),
            empty_rows(weight),
            empty_rows(bias),
            empty_rows(scale),
            empty_rows(shift),
        )
        received = iter([channels_last(grad) for grad in grads])
        grad_out = next(received)
        grad_plain = next(received) if ctx.plain else None
        grad_sum = None if inputs.addend is None else next(received)
        given = Received(mean, rstd, grad_out, grad_plain, grad_sum)
        if ctx.backend is None:
            torch.ops.edm_fast.group_norm_silu_grad_(*inputs, *ctx.settings, *given, *results)
        else:
            _run_grad(ctx.backend, inputs, ctx.settings, given, results)
        return (
            None,
            None,
            None,
            None,
            results.x if x else None,
            results.x2,
            results.x if addend else None,
            None if results.weight is None else results.weight.sum(0),
            None if results.bias is None else results.bias.sum(0),
            _summed_like(inputs.pre_bias, results.pre_bias),
            _summed_like(inputs.scale, results.scale),
            _summed_like(inputs.shift, results.shift),
        )


def _summed_like(rows: torch.Tensor | None, grad: torch.Tensor | None) -> torch.Tensor | None:
    """The gradient of rows that one sample has, or all samples share."""
    if rows is None or grad is None:
        return None
    return grad.sum(0, keepdim=True) if rows.shape[0] == 1 else grad


def _run(backend: str, inputs: Inputs, settings: Settings, moments: Sequence[torch.Tensor], outputs: Outputs) -> None:
    check(inputs, settings, moments, outputs)
    if backend == "cpu" and moments and moments[0].dim() == 4:
        raise ValueError(f"moments: got {tuple(moments[0].shape)}; the CPU takes those of all pixels, [N, Ci, 2]")
    if inputs.x.shape[0]:
        moments = [part.contiguous() for part in moments]  # copies, if any, must outlive the launch
        backends.launch(
            "group_norm_silu", backend, inputs.x.device, *binding_arguments(inputs, settings, moments, outputs)
        )


def _run_grad(backend: str, inputs: Inputs, settings: Settings, given: Received, results: Gradients) -> None:
    check_grad(inputs, settings, given, results)
    if inputs.x.shape[0]:
        backends.launch(
            "group_norm_silu_grad",
            backend,
            inputs.x.device,
            *binding_arguments(inputs, settings, (), (None, None, None, given.mean, given.rstd)),
            (given.out.data_ptr(), address(given.plain), address(given.sum)),
            tuple(address(result) for result in results),
        )


_INPUTS = (
    "Tensor x, Tensor? x2, Tensor? addend, Tensor weight, Tensor bias, Tensor? pre_bias, Tensor? scale, Tensor? shift"
)
_SETTINGS = "float sum_scale, int num_groups, float eps, bool silu, int direction, int padding, float[] taps"
LIBRARY.define(
    f"group_norm_silu_({_INPUTS}, {_SETTINGS}, Tensor[] moments, Tensor(a!) out, Tensor(b!)? plain, Tensor(c!)? sum, "
    "Tensor(d!)? mean, Tensor(e!)? rstd) -> ()"
)
LIBRARY.define(
    f"group_norm_silu_grad_({_INPUTS}, {_SETTINGS}, Tensor mean, Tensor rstd, Tensor grad_out, Tensor? grad_plain, "
    "Tensor? grad_sum, Tensor(a!)? grad_x, Tensor(b!)? grad_x2, Tensor(c!)? grad_pre_bias, Tensor(d!)? grad_weight, "
    "Tensor(e!)? grad_bias, Tensor(f!)? grad_scale, Tensor(g!)? grad_shift) -> ()"
)
_TENSORS, _NUMBERS = len(Inputs._fields), len(Settings._fields)


def _parsed(args: Sequence[Any]) -> tuple[Inputs, Settings, Sequence[Any]]:
    """The arguments of both operators: inputs, settings, and what follows them."""
    settings = Settings(*args[_TENSORS : _TENSORS + _NUMBERS])
    return Inputs(*args[:_TENSORS]), settings, args[_TENSORS + _NUMBERS :]


def _operator(backend: str, *args: Any) -> None:
    inputs, settings, (moments, *outputs) = _parsed(args)
    _run(backend, inputs, settings, moments, Outputs(*outputs))


def _grad_operator(backend: str, *args: Any) -> None:
    inputs, settings, rest = _parsed(args)
    _run_grad(backend, inputs, settings, Received(*rest[:5]), Gradients(*rest[5:]))


for _key, _backend in (("CPU", "cpu"), ("CUDA", "cuda")):
    LIBRARY.impl("group_norm_silu_", functools.partial(_operator, _backend), _key)
    LIBRARY.impl("group_norm_silu_grad_", functools.partial(_grad_operator, _backend), _key)


@torch.library.register_fake("edm_fast::group_norm_silu_", lib=LIBRARY)
def _fake(*args: Any) -> None:
    inputs, settings, (moments, *outputs) = _parsed(args)
    check(inputs, settings, moments, Outputs(*outputs))


@torch.library.register_fake("edm_fast::group_norm_silu_grad_", lib=LIBRARY)
def _fake_grad(*args: Any) -> None:
    inputs, settings, rest = _parsed(args)
    check_grad(inputs, settings, Received(*rest[:5]), Gradients(*rest[5:]))
