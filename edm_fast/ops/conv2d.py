"""3×3 and 1×1 convolutions with all that follows them in a residual branch.

On the CPU the kernels are our own: Winograd's F(4×4, 3×3), F(2×4, 3×3) and F(2×2, 3×3), and an implicit GEMM, which
matrix tiles (AMX) multiply where the processor has them and images are in bfloat16. On CUDA the convolution is the
library's (cuDNN); `edm_fast.ops.conv2d_split` is ours there, for few images. `edm_fast.plan` calls the kernels with
weights that are packed once; in training they are packed at every call, which pays from some 64 channels and 12 pixels
a side on. The gradient of the images is a convolution too, and takes the same kernels; for that of the weights see
`edm_fast.ops.conv2d_weight_grad`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from edm_fast.ops import backends
from edm_fast.ops.conv2d_forms import ALGORITHMS, TILE_CHANNELS, fastest_weight_gradient, fastest_winograd
from edm_fast.ops.conv2d_weight_grad import conv2d_weight_grad
from edm_fast.ops.library import LIBRARY
from edm_fast.ops.tensors import DTYPE_CODES, check_device


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    x2: torch.Tensor | None = None,
    channel_bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    residual_up: bool = False,
    scale: float = 1.0,
    padding: int | None = None,
    algorithm: str = "library",
    pairs: bool = False,
) -> torch.Tensor:
    """out = (weight * [x, x2] + bias + channel_bias + residual) · scale, [N, O, H', W'], in x's dtype.

    H' = H + 2·padding − k + 1. Our algorithms work in float32 inside, whatever the storage dtype, with float32 weights,
    unless `pairs` is set; each sample's result is the same, to the bit, in every batch and on any number of threads.
    The library's follow PyTorch's rules. Differentiable with respect to every tensor.

    Args:
        x, x2: [N, I1, H, W] and [N, I2, H, W], side by side in channels; float32, bfloat16 or float16.
        weight: [O, I1 + I2, k, k], k = 3 or 1.
        bias: [O].
        channel_bias: [N, O] or [1, O].
        residual: [N, O, H', W'], or with `residual_up` [N, O, H'/2, W'/2], each pixel of which is repeated 2×2.
        scale: a number.
        padding: zeros on each side; k // 2 if not given.
        algorithm: "library", "direct", "winograd2", "winograd2x4", "winograd4" or "tiles"; Winograd's for 3×3 with one
            source; tiles, the direct form by AMX, with `pairs` and channels in 32s.
        pairs: multiply pairs of bfloat16 and sum in float32: weights are rounded, and with Winograd's forms the
            transformed input too. For x in bfloat16, even numbers of channels, our algorithms, and processors that
            have the instruction (AVX512_BF16).

    Raises:
        ValueError, TypeError: shapes, devices or dtypes that do not fit; names the argument.
    """
    if algorithm == "library":
        if pairs:
            raise ValueError("pairs: the library has its own ways; choose another algorithm")
        return _library(x, weight, bias, x2, channel_bias, residual, residual_up, scale, padding)
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm: got {algorithm!r}; it is library, {', '.join(ALGORITHMS)}")
    if x.device.type != "cpu":
        raise ValueError(f"algorithm: {algorithm!r} runs on the CPU, and x is on {x.device}")
    padding = weight.shape[-1] // 2 if padding is None else padding
    tensors = (x, weight, bias, x2, channel_bias, residual)
    return _Conv2d.apply(*tensors, residual_up, float(scale), padding, ALGORITHMS[algorithm], pairs)


def _library(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    x2: torch.Tensor | None,
    channel_bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    residual_up: bool,
    scale: float,
    padding: int | None,
) -> torch.Tensor:
    source = x if x2 is None else torch.cat([x, x2], dim=1)
    padding = weight.shape[-1] // 2 if padding is None else padding
    rounded = None if bias is None else bias.to(x.dtype)
    out = functional.conv2d(source, weight.to(x.dtype), rounded, padding=padding)
    if channel_bias is not None:
        out = out + channel_bias.to(x.dtype)[:, :, None, None]
    if residual is not None:
        out = out + (_repeated(residual) if residual_up else residual)
    return out if scale == 1 else out * scale


def _repeated(image: torch.Tensor) -> torch.Tensor:
    return image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        x, weight, bias, x2, channel_bias, _residual, residual_up, scale, padding, algorithm, _pairs = args
        ctx.save_for_backward(x, weight, x2)
        ctx.options = residual_up, scale, padding, algorithm
        ctx.shapes = [None if tensor is None else tensor.shape for tensor in (bias, channel_bias)]
        return torch.ops.edm_fast.conv2d(*args, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, x2 = ctx.saved_tensors
        residual_up, scale, padding, algorithm = ctx.options
        grad = grads[0] if scale == 1 else grads[0] * scale
        source = x if x2 is None else torch.cat([x, x2], dim=1)
        of_images = ctx.needs_input_grad[0] or ctx.needs_input_grad[3]
        winograd = algorithm not in (ALGORITHMS["direct"], ALGORITHMS["tiles"])
        # A convolution with the weight turned round, where ours has that padding.
        ours = of_images and winograd and padding <= weight.shape[-1] - 1
        wanted = [of_images and not ours, ctx.needs_input_grad[1] and not winograd, False]
        grad_weight = grad_x = grad_x2 = None
        if any(wanted):
            grad_source, grad_weight, _ = torch.ops.aten.convolution_backward(
                grad, source, weight.to(x.dtype), None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], 1, wanted
            )
        if ours:
            form = ALGORITHMS[fastest_winograd(grad.shape[1], min(x.shape[2:]))]
            margin = weight.shape[-1] - 1 - padding
            grad_x = torch.ops.edm_fast.conv2d(grad, weight, *(None,) * 4, False, 1.0, margin, form, False, True)
        elif of_images:
            grad_x, grad_x2 = grad_source.split([x.shape[1], 0 if x2 is None else x2.shape[1]], dim=1)
        if winograd and ctx.needs_input_grad[1]:
            best = fastest_weight_gradient(grad.shape[0], *grad.shape[2:])
            grad_weight = conv2d_weight_grad(x, grad, padding, algorithm=best)
        per_sample = grad.float().sum(dim=(2, 3)) if any(ctx.needs_input_grad[i] for i in (2, 4)) else None
        grad_bias = grad_channel = grad_residual = None
        if ctx.needs_input_grad[2] and per_sample is not None:
            grad_bias = per_sample.sum(dim=0)
        if ctx.needs_input_grad[4] and per_sample is not None:
            grad_channel = per_sample.sum(dim=0, keepdim=True) if ctx.shapes[1][0] == 1 else per_sample
        if ctx.needs_input_grad[5]:
            grad_residual = functional.avg_pool2d(grad, 2) * 4 if residual_up else grad
        return (
            grad_x,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            grad_bias,
            grad_x2 if x2 is not None else None,
            grad_channel,
            grad_residual,
            *(None,) * 5,
        )


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    x2: torch.Tensor | None,
    channel_bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    residual_up: bool,
    padding: int,
    algorithm: int,
    pairs: bool,
    turned: bool,
) -> tuple[int, int]:
    """The output's height and width."""
    if x.dim() != 4 or x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"x: got {x.dtype} {tuple(x.shape)}; [N, C, H, W] in float32, bfloat16 or float16 is needed")
    kernel = weight.shape[-1] if weight.dim() == 4 else 0
    if kernel not in (1, 3) or weight.shape[2] != kernel:
        raise ValueError(f"weight: got {tuple(weight.shape)}; [O, I, 3, 3] or [O, I, 1, 1] is needed")
    samples, channels, height, width = x.shape
    if x2 is not None:
        if x2.shape != (samples, x2.shape[1], height, width) or x2.dtype != x.dtype:
            raise ValueError(
                f"x2: got {x2.dtype} {tuple(x2.shape)}; only the channels may differ from x {tuple(x.shape)}"
            )
        channels += x2.shape[1]
    if weight.shape[0 if turned else 1] != channels:
        raise ValueError(f"weight: got {tuple(weight.shape)}; the input has {channels} channels")
    if algorithm not in ALGORITHMS.values():
        raise ValueError(f"algorithm: got the code {algorithm}; it is one of {ALGORITHMS}")
    if algorithm == ALGORITHMS["tiles"]:
        _check_tiles(x, x2, pairs)
    elif algorithm and (kernel != 3 or x2 is not None or channels == 0):
        raise ValueError("algorithm: Winograd's forms need a 3x3 weight and a single source with channels")
    if pairs:
        _check_pairs(x, x2)
    if padding < 0:
        raise ValueError(f"padding: got {padding}; it is not negative")
    size = height + 2 * padding - kernel + 1, width + 2 * padding - kernel + 1
    if min(size) < 1:
        raise ValueError(f"x: {height}x{width} pixels are too few for a {kernel}x{kernel} weight and padding {padding}")
    out_channels = weight.shape[1 if turned else 0]
    if bias is not None and bias.shape != (out_channels,):
        raise ValueError(f"bias: got {tuple(bias.shape)}; ({out_channels},) is needed")
    if channel_bias is not None and channel_bias.shape not in ((samples, out_channels), (1, out_channels)):
        raise ValueError(f"channel_bias: got {tuple(channel_bias.shape)}; ({samples} or 1, {out_channels}) is needed")
    if residual is not None:
        wanted = (samples, out_channels, *(extent // 2 if residual_up else extent for extent in size))
        if residual.shape != wanted or residual.dtype != x.dtype:
            raise ValueError(f"residual: got {residual.dtype} {tuple(residual.shape)}; {x.dtype} {wanted} is needed")
        if residual_up and any(extent % 2 for extent in size):
            raise ValueError(f"residual_up: an output of {size[0]}x{size[1]} is not twice an image")
    for name, tensor in (("weight", weight), ("bias", bias), ("x2", x2), ("channel_bias", channel_bias)):
        if tensor is not None:
            check_device(name, tensor, x.device)
    return size


def _check_pairs(x: torch.Tensor, x2: torch.Tensor | None) -> None:
    channels = [image.shape[1] for image in (x, x2) if image is not None]
    if x.dtype != torch.bfloat16 or any(count % 2 for count in channels):
        raise ValueError(f"pairs: need bfloat16 and even numbers of channels; x is {x.dtype} with {channels} channels")
    if not backends.kernels("cpu").multiplies_pairs():
        raise ValueError(f"pairs: not among the instructions in use, {backends.kernels('cpu').isa()}")


def _check_tiles(x: torch.Tensor, x2: torch.Tensor | None, pairs: bool) -> None:
    channels = [image.shape[1] for image in (x, x2) if image is not None]
    if not pairs or not channels[0] or any(count % TILE_CHANNELS for count in channels):
        raise ValueError(f"algorithm: tiles need pairs and channels in {TILE_CHANNELS}s; got {pairs} and {channels}")
    if not backends.kernels("cpu").multiplies_tiles():
        raise ValueError(f"algorithm: tiles are not among the instructions in use, {backends.kernels('cpu').isa()}")


def _run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    x2: torch.Tensor | None,
    channel_bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    residual_up: bool,
    scale: float,
    padding: int,
    algorithm: int,
    pairs: bool,
    turned: bool,
) -> torch.Tensor:
    size = _check(x, weight, bias, x2, channel_bias, residual, residual_up, padding, algorithm, pairs, turned)
    cpu, threads = backends.kernels("cpu"), torch.get_num_threads()
    out_channels, in_channels, kernel, _ = weight.transpose(0, 1).shape if turned else weight.shape
    factors = DTYPE_CODES[torch.bfloat16 if pairs else torch.float32]
    shape = (x.shape[0], out_channels, *size)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    dense = weight.float().contiguous()
    size_in_floats = cpu.conv2d_packed_size(in_channels, out_channels, kernel, algorithm, factors)
    packed = torch.empty(size_in_floats, dtype=torch.float32, device="cpu")
    addresses = dense.data_ptr(), packed.data_ptr()
    cpu.pack_conv2d(in_channels, out_channels, kernel, algorithm, factors, turned, *addresses, threads)
    # Copies, if any, must outlive the call.
    images = [
        None if image is None else image.contiguous(memory_format=torch.channels_last) for image in (x, x2, residual)
    ]
    vectors = [None if vector is None else vector.float().contiguous() for vector in (bias, channel_bias)]
    inputs = [0 if tensor is None else tensor.data_ptr() for tensor in (*images, *vectors)]
    stride = out_channels if channel_bias is not None and channel_bias.shape[0] > 1 else 0
    cpu.conv2d(
        (x.shape[0], x.shape[2], x.shape[3]),
        (x.shape[1], 0 if x2 is None else x2.shape[1]),
        out_channels,
        kernel,
        padding,
        algorithm,
        factors,
        DTYPE_CODES[x.dtype],
        inputs[0],
        inputs[1],
        packed.data_ptr(),
        inputs[3],
        (inputs[4], stride),
        inputs[2],
        int(residual_up),
        scale,
        out.data_ptr(),
        threads,
    )
    return out


LIBRARY.define(
    "conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? x2, Tensor? channel_bias, Tensor? residual, "
    "bool residual_up, float scale, int padding, int algorithm, bool pairs, bool turned) -> Tensor"
)
LIBRARY.impl("conv2d", _run, "CPU")


@torch.library.register_fake("edm_fast::conv2d", lib=LIBRARY)
def _fake(x: torch.Tensor, weight: torch.Tensor, *args: Any) -> torch.Tensor:
    bias, x2, channel_bias, residual, residual_up, _scale, padding, algorithm, pairs, turned = args
    size = _check(x, weight, bias, x2, channel_bias, residual, residual_up, padding, algorithm, pairs, turned)
    shape = (x.shape[0], weight.shape[1 if turned else 0], *size)
    return x.new_empty(shape).contiguous(memory_format=torch.channels_last)
