"""The gradient of 3×3 weights by Winograd's forms, on the CPU.

In `edm_fast.ops.conv2d` it is the backward pass of the layers that our forms compute.
"""

from __future__ import annotations

import operator

import torch

from edm_fast.ops import backends
from edm_fast.ops.conv2d_forms import ALGORITHMS
from edm_fast.ops.library import LIBRARY
from edm_fast.ops.tensors import DTYPE_CODES, check_device

_FORMS = [code for name, code in ALGORITHMS.items() if name.startswith("winograd")]


def conv2d_weight_grad(x: torch.Tensor, grad: torch.Tensor, padding: int = 1, *, algorithm: str) -> torch.Tensor:
    """Σ over n, y, x of grad[n, o, y, x] · x[n, i, y + a − p, x + b − p]: [O, I, 3, 3], float32.

    F(4×4, 3×3) transforms x and the gradient of 4×4 outputs to 36 products each, where the direct form takes 144. Sums
    are in float32, whatever the storage dtype, in an order that depends on the shapes alone: any number of threads
    gives the same bits. Not differentiable.

    Args:
        x: [N, I, H, W]; float32, bfloat16 or float16; on the CPU.
        grad: [N, O, H + 2p − 2, W + 2p − 2], in x's dtype.
        padding: p, zeros on each side of x.
        algorithm: "winograd2", "winograd2x4" or "winograd4".

    Raises:
        ValueError, TypeError: shapes, devices or dtypes that do not fit; names the argument.
    """
    if algorithm not in ALGORITHMS or ALGORITHMS[algorithm] not in _FORMS:
        raise ValueError(f"algorithm: got {algorithm!r}; it is winograd2, winograd2x4 or winograd4")
    if x.device.type != "cpu":
        raise ValueError(f"x: is on {x.device}; the kernel runs on the CPU")
    try:
        padding = operator.index(padding)
    except TypeError:
        raise TypeError(f"padding: got {padding!r}; it is an integer") from None
    return torch.ops.edm_fast.conv2d_weight_grad(x.detach(), grad.detach(), padding, ALGORITHMS[algorithm])


def _check(x: torch.Tensor, grad: torch.Tensor, padding: int, algorithm: int) -> tuple[int, int, int, int]:
    if algorithm not in _FORMS:
        raise ValueError(f"algorithm: got the code {algorithm}; it is one of {_FORMS}")
    if x.dim() != 4 or x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"x: got {x.dtype} {tuple(x.shape)}; [N, C, H, W] in float32, bfloat16 or float16 is needed")
    if padding < 0:
        raise ValueError(f"padding: got {padding}; it is not negative")
    samples, channels, height, width = x.shape
    size = height + 2 * padding - 2, width + 2 * padding - 2
    if min(size) < 1:
        raise ValueError(f"x: {height}x{width} pixels are too few for a 3x3 weight and padding {padding}")
    if grad.dim() != 4 or grad.dtype != x.dtype or grad.shape != (samples, grad.shape[1], *size):
        wanted = f"{x.dtype} ({samples}, O, {size[0]}, {size[1]})"
        raise ValueError(f"grad: got {grad.dtype} {tuple(grad.shape)}; {wanted} is needed")
    check_device("grad", grad, x.device)
    return grad.shape[1], channels, 3, 3


def _run(x: torch.Tensor, grad: torch.Tensor, padding: int, algorithm: int) -> torch.Tensor:
    out = torch.empty(_check(x, grad, padding, algorithm), dtype=torch.float32, device=x.device)
    # Copies, if any, must outlive the call.
    images = [image.contiguous(memory_format=torch.channels_last) for image in (x, grad)]
    backends.kernels("cpu").conv2d_weight_grad(
        (x.shape[0], x.shape[2], x.shape[3]),
        (x.shape[1], grad.shape[1]),
        padding,
        algorithm,
        DTYPE_CODES[x.dtype],
        images[0].data_ptr(),
        images[1].data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


LIBRARY.define("conv2d_weight_grad(Tensor x, Tensor grad, int padding, int algorithm) -> Tensor")
LIBRARY.impl("conv2d_weight_grad", _run, "CPU")


@torch.library.register_fake("edm_fast::conv2d_weight_grad", lib=LIBRARY)
def _fake(x: torch.Tensor, grad: torch.Tensor, padding: int, algorithm: int) -> torch.Tensor:
    return x.new_empty(_check(x, grad, padding, algorithm), dtype=torch.float32)
