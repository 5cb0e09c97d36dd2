"""Self-attention over the pixels of an image.

On the CPU the kernels in csrc/cpu compute it, in float32 whatever the dtype, and a sample's result does not depend on
its batch or on the number of threads. On CUDA there is no kernel of ours: `scaled_dot_product_attention` takes views
of qkv with `packed=True`, and one copy of it in EDM's order, since it needs the channels of a head side by side. Its
kernels err several times as much in float32 as the reference, which is taken there instead.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.nn import functional

from edm_fast.ops import backends
from edm_fast.ops.library import LIBRARY
from edm_fast.ops.tensors import DTYPE_CODES, check_device, check_float, check_shape, check_writable, image_view

Tokens = tuple[int, int, int, int, int]


def attention(qkv: torch.Tensor, num_heads: int, *, packed: bool = False, backend: str | None = None) -> torch.Tensor:
    """Per sample and head, with Q, K, V [H·W, d] and d = C / num_heads:

        out = softmax(Q Kᵀ / √d) V

    Differentiable. float64 is routed to the reference, with a warning.

    Args:
        qkv: [N, 3C, H, W], float32, float16 or bfloat16; channels-last is read where it lies, any other layout is
            copied. Channel (head·d + c)·3 + i is channel c of the head's q, k or v.
        num_heads: divides C.
        packed: the channels are ordered i·C + head·d + c instead: all of q, then k, then v.
        backend: None (by device), "cpu", "cuda" or "reference".

    Returns:
        [N, C, H, W] in qkv's dtype, channels-last; channel head·d + c.

    Raises:
        ValueError, TypeError: a shape, number of heads or dtype that does not fit; before any launch.
    """
    _check(qkv, num_heads)
    chosen = backends.choose(backend, qkv.device)
    if chosen != "reference" and qkv.dtype == torch.float64:
        warnings.warn("attention: float64 has no kernel; the reference computes it", stacklevel=2)
        chosen = "reference"
    if chosen == "reference":
        return _reference_attention(qkv, num_heads, packed)
    if chosen == "cuda":
        return library_attention(qkv, num_heads, packed)
    if torch.is_grad_enabled() and qkv.requires_grad:
        out: torch.Tensor = _Attention.apply(qkv, num_heads, packed)
        return out
    out = _empty_output(qkv)
    torch.ops.edm_fast.attention_(_channels_last(qkv), num_heads, packed, out, None)
    return out


def _reference_attention(qkv: torch.Tensor, num_heads: int, packed: bool) -> torch.Tensor:
    from edm_fast.reference.attention import self_attention

    return self_attention(qkv, num_heads, packed).contiguous(memory_format=torch.channels_last)


def library_attention(qkv: torch.Tensor, num_heads: int, packed: bool) -> torch.Tensor:
    """`attention` by scaled_dot_product_attention, and by the reference in float32; on any device, differentiable."""
    if qkv.dtype == torch.float32:
        return _reference_attention(qkv, num_heads, packed)
    samples, channels, height, width = qkv.shape
    tokens = _channels_last(qkv).permute(0, 2, 3, 1).reshape(samples, height * width, channels)
    head_channels = channels // (3 * num_heads)
    if packed:
        parts = tokens.view(samples, height * width, 3, num_heads, head_channels).permute(2, 0, 3, 1, 4)
    else:
        apart = tokens.view(samples, height * width, num_heads, head_channels, 3).permute(4, 0, 1, 2, 3).contiguous()
        parts = apart.transpose(2, 3)
    q, k, v = parts.unbind(0)
    attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    image = attended.reshape(samples, height, width, channels // 3).permute(0, 3, 1, 2)
    return image.contiguous(memory_format=torch.channels_last)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: torch.Tensor, num_heads: int, packed: bool) -> torch.Tensor:
        qkv = _channels_last(qkv)
        out = _empty_output(qkv)
        samples, _, height, width = qkv.shape
        log_sum_exp = qkv.new_empty([samples, num_heads, height * width], dtype=torch.float32)
        torch.ops.edm_fast.attention_(qkv, num_heads, packed, out, log_sum_exp)
        ctx.save_for_backward(qkv, log_sum_exp)
        ctx.num_heads, ctx.packed = num_heads, packed
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        qkv, log_sum_exp = ctx.saved_tensors
        grad_qkv = torch.empty_like(qkv, memory_format=torch.channels_last)
        torch.ops.edm_fast.attention_grad_(
            _channels_last(grad_out), qkv, log_sum_exp, ctx.num_heads, ctx.packed, grad_qkv
        )
        return grad_qkv, None, None


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _empty_output(qkv: torch.Tensor) -> torch.Tensor:
    samples, channels, height, width = qkv.shape
    return torch.empty(
        [samples, channels // 3, height, width],
        dtype=qkv.dtype,
        device=qkv.device,
        memory_format=torch.channels_last,
    )


def _check(qkv: torch.Tensor, num_heads: int) -> None:
    check_float("qkv", qkv.dtype)
    if qkv.dim() != 4:
        raise ValueError(f"qkv: shape is {tuple(qkv.shape)}; it must be [N, 3C, H, W]")
    if num_heads < 1:
        raise ValueError(f"num_heads: got {num_heads}; at least 1 is needed")
    if qkv.shape[1] == 0 or qkv.shape[1] % (3 * num_heads) != 0:
        raise ValueError(f"qkv: has {qkv.shape[1]} channels; {num_heads} heads need a multiple of {3 * num_heads}")


def _check_kernel(qkv: torch.Tensor, num_heads: int, log_sum_exp: torch.Tensor | None) -> None:
    _check(qkv, num_heads)
    if qkv.dtype == torch.float64:
        raise TypeError("qkv: dtype is torch.float64; it must be float32, float16 or bfloat16")
    samples, _, height, width = qkv.shape
    if log_sum_exp is not None:
        check_shape("log_sum_exp", log_sum_exp, (samples, num_heads, height * width))
        check_device("log_sum_exp", log_sum_exp, qkv.device)
        if log_sum_exp.dtype != torch.float32:
            raise TypeError(f"log_sum_exp: dtype is {log_sum_exp.dtype}; it must be float32")
        if not log_sum_exp.is_contiguous():
            raise ValueError(f"log_sum_exp: strides are {log_sum_exp.stride()}; it must be contiguous")


def _check_image(name: str, image: torch.Tensor, qkv: torch.Tensor, channels: int, *, written: bool = False) -> None:
    check_shape(name, image, (qkv.shape[0], channels, *qkv.shape[2:]))
    check_device(name, image, qkv.device)
    if image.dtype != qkv.dtype:
        raise TypeError(f"{name}: dtype is {image.dtype}; qkv is {qkv.dtype}")
    # Strides of an empty channels-last tensor are 0.
    if written and image.numel() > 0:
        check_writable(name, image)


def _tokens(name: str, image: torch.Tensor, first: int, head_stride: int, channel_step: int) -> Tokens:
    """The view of the channels first, first + channel_step, … of each head; heads are head_stride channels apart."""
    pointer, _, sample, channel, pixel = image_view(name, image)
    return (
        pointer + first * channel * image.element_size(),
        sample,
        pixel,
        head_stride * channel,
        channel_step * channel,
    )


def _qkv_tokens(name: str, qkv: torch.Tensor, num_heads: int, packed: bool) -> list[Tokens]:
    channels = qkv.shape[1] // 3
    head_channels = channels // num_heads
    if packed:
        return [_tokens(name, qkv, i * channels, head_channels, 1) for i in range(3)]
    return [_tokens(name, qkv, i, 3 * head_channels, 3) for i in range(3)]


def _shape(qkv: torch.Tensor, num_heads: int) -> tuple[int, int, int, int]:
    samples, channels, height, width = qkv.shape
    return samples, num_heads, height * width, channels // (3 * num_heads)


def _check_forward(
    qkv: torch.Tensor, num_heads: int, packed: bool, out: torch.Tensor, log_sum_exp: torch.Tensor | None
) -> None:
    _check_kernel(qkv, num_heads, log_sum_exp)
    _check_image("out", out, qkv, qkv.shape[1] // 3, written=True)


def _run(
    backend: str, qkv: torch.Tensor, num_heads: int, packed: bool, out: torch.Tensor, log_sum_exp: torch.Tensor | None
) -> None:
    _check_forward(qkv, num_heads, packed, out, log_sum_exp)
    shape = _shape(qkv, num_heads)
    backends.launch(
        "attention",
        backend,
        qkv.device,
        shape,
        DTYPE_CODES[qkv.dtype],
        *_qkv_tokens("qkv", qkv, num_heads, packed),
        _tokens("out", out, 0, shape[3], 1),
        0 if log_sum_exp is None else log_sum_exp.data_ptr(),
    )


def _check_backward(
    grad_out: torch.Tensor,
    qkv: torch.Tensor,
    log_sum_exp: torch.Tensor,
    num_heads: int,
    packed: bool,
    grad_qkv: torch.Tensor,
) -> None:
    _check_kernel(qkv, num_heads, log_sum_exp)
    _check_image("grad_out", grad_out, qkv, qkv.shape[1] // 3)
    _check_image("grad_qkv", grad_qkv, qkv, qkv.shape[1], written=True)


def _run_backward(
    backend: str,
    grad_out: torch.Tensor,
    qkv: torch.Tensor,
    log_sum_exp: torch.Tensor,
    num_heads: int,
    packed: bool,
    grad_qkv: torch.Tensor,
) -> None:
    _check_backward(grad_out, qkv, log_sum_exp, num_heads, packed, grad_qkv)
    shape = _shape(qkv, num_heads)
    backends.launch(
        "attention_grad",
        backend,
        qkv.device,
        shape,
        DTYPE_CODES[qkv.dtype],
        *_qkv_tokens("qkv", qkv, num_heads, packed),
        (0, 0, 0, 0, 0),
        log_sum_exp.data_ptr(),
        _tokens("grad_out", grad_out, 0, shape[3], 1),
        *_qkv_tokens("grad_qkv", grad_qkv, num_heads, packed),
    )


LIBRARY.define("attention_(Tensor qkv, int num_heads, bool packed, Tensor(a!) out, Tensor(b!)? log_sum_exp) -> ()")
LIBRARY.define(
    "attention_grad_(Tensor grad_out, Tensor qkv, Tensor log_sum_exp, int num_heads, bool packed, "
    "Tensor(a!) grad_qkv) -> ()"
)
LIBRARY.impl("attention_", lambda *args: _run("cpu", *args), "CPU")
LIBRARY.impl("attention_grad_", lambda *args: _run_backward("cpu", *args), "CPU")
torch.library.register_fake("edm_fast::attention_", lambda *args: _check_forward(*args), lib=LIBRARY)
torch.library.register_fake("edm_fast::attention_grad_", lambda *args: _check_backward(*args), lib=LIBRARY)
