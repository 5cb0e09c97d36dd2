"""2× resampling of images with a separable FIR filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from edm_fast.ops import backends
from edm_fast.ops.library import LIBRARY
from edm_fast.ops.tensors import (
    DTYPE_CODES,
    channels_last,
    check_dense,
    check_device,
    check_images,
    check_kernel_dtype,
    check_same_dtype,
    check_shape,
)

# kMaxTaps of csrc/include/edm_fast/resample.h.
MAX_TAPS = 8


class Filter(NamedTuple):
    """As the kernels have it: 1 is up, -1 down, 0 none; taps in float64 with sum 1 (times 2 or 1/2 in gradients)."""

    direction: int
    padding: int
    taps: tuple[float, ...]

    def extent(self, extent: int) -> int:
        """A height or width after resampling."""
        if self.direction == 0:
            return extent
        k, p = len(self.taps), self.padding
        return 2 * extent - 2 + k - 2 * p if self.direction > 0 else (extent + 2 * p - k) // 2 + 1


def resampling_filter(up: bool, down: bool, taps: Sequence[float], padding: int | None = None) -> Filter:
    """The filter for the public arguments; ValueError for those that no kernel has."""
    if up and down:
        raise ValueError("up: it excludes down, but both are True")
    values = tuple(float(tap) for tap in taps)
    total = sum(values)
    if (
        len(values) % 2
        or not 2 <= len(values) <= MAX_TAPS
        or values != values[::-1]
        or not 0 < abs(total) < float("inf")
    ):
        raise ValueError(f"taps: got {values}; 2, 4, 6 or {MAX_TAPS} symmetric numbers with a finite sum are needed")
    if padding is not None and not 0 <= padding < len(values):
        raise ValueError(f"padding: got {padding}; it must be from 0 to {len(values) - 1}, one less than the taps")
    direction = 1 if up else -1 if down else 0
    p = (len(values) - 2) // 2 if padding is None else padding
    return Filter(direction, p, tuple(tap / total for tap in values))


def resample(
    x: torch.Tensor,
    *,
    up: bool = False,
    down: bool = False,
    taps: Sequence[float] = (1, 1),
    padding: int | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Images of twice (`up`) or half (`down`) the height and width, channels-last; differentiable.

        down: out[i, j] = Σ_ab f[a]·f[b]·x[2i + a − p, 2j + b − p]                 H' = ⌊(H + 2p − k)/2⌋ + 1
        up:   out[i, j] = Σ_ab 2f[a]·2f[b]·x[(i + p − a)/2, (j + p − b)/2]         H' = 2H − 2 + k − 2p

    where in `up` only whole indices count, and pixels outside x are 0. Sums are in float32.

    Args:
        x: images [N, C, H, W]; float32, float16 or bfloat16. What is not channels-last is copied first. float64 runs on
            the reference.
        up, down: one of them is True.
        taps: f before its normalisation to sum 1: k symmetric numbers, k = 2, 4, 6 or 8.
        padding: p; None stands for (k − 2)/2, with which extents are doubled or halved exactly.
        backend: None (by device), "cpu", "cuda" or "reference".

    Raises:
        ValueError, TypeError: an argument outside of this; its name comes first.
    """
    if not up and not down:
        raise ValueError("up: it or down must be True")
    kernel = resampling_filter(up, down, taps, padding)
    check_images("x", x)
    check_extents("x", x, kernel)
    chosen = backends.choose_for("resample", backend, x)
    if chosen == "reference":
        from edm_fast.reference.resample import resample as reference_resample

        return reference_resample(x, up=up, down=down, taps=taps, padding=padding)
    x = channels_last(x)
    if torch.is_grad_enabled() and x.requires_grad:
        return _Resample.apply(backend, x, *kernel)
    return _resampled(backend, x, kernel)


def check_extents(name: str, x: torch.Tensor, kernel: Filter) -> None:
    """ValueError for images too small to be resampled."""
    if kernel.extent(x.shape[2]) < 1 or kernel.extent(x.shape[3]) < 1:
        raise ValueError(
            f"{name}: {x.shape[2]}x{x.shape[3]} pixels leave none after resampling with {len(kernel.taps)} taps and a "
            f"padding of {kernel.padding}"
        )


def _resampled(backend: str | None, x: torch.Tensor, kernel: Filter) -> torch.Tensor:
    shape = [x.shape[0], x.shape[1], kernel.extent(x.shape[2]), kernel.extent(x.shape[3])]
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if backend is None:
        torch.ops.edm_fast.resample_(x, *kernel, out)
    else:
        _run(backend, x, *kernel, out)
    return out


class _Resample(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, backend: str | None, x: torch.Tensor, direction: int, padding: int, taps: tuple[float, ...]
    ) -> torch.Tensor:
        ctx.backend, ctx.kernel, ctx.extents = backend, (direction, padding, taps), x.shape[2:]
        return _resampled(backend, x, Filter(direction, padding, taps))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        direction, padding, taps = ctx.kernel
        # Transposed, up (with 2f) is down with 2f, and down is up, whose own factor of 2 is taken back.
        factor = 2.0 if direction > 0 else 0.5
        transposed = Filter(-direction, padding, tuple(factor * tap for tap in taps))
        height, width = ctx.extents
        # Where down left out a last row or column, up gives it if a row of zeros follows.
        rest = [height - transposed.extent(grad.shape[2]), width - transposed.extent(grad.shape[3])]
        if any(rest):
            grad = functional.pad(grad, [0, 1 if rest[1] else 0, 0, 1 if rest[0] else 0])
        result = _resampled(ctx.backend, channels_last(grad), transposed)
        return None, result[:, :, :height, :width], None, None, None


def _check(x: torch.Tensor, direction: int, padding: int, taps: Sequence[float], out: torch.Tensor) -> None:
    check_images("x", x)
    check_kernel_dtype("x", x.dtype)
    if direction not in (1, -1):
        raise ValueError(f"direction: got {direction}; it is 1 or -1")
    kernel = Filter(direction, padding, tuple(taps))
    if not 2 <= len(taps) <= MAX_TAPS or len(taps) % 2:
        raise ValueError(f"taps: got {len(taps)}; 2, 4, 6 or {MAX_TAPS} are needed")
    check_extents("x", x, kernel)
    check_dense("x", x)
    check_device("out", out, x.device)
    check_shape("out", out, [x.shape[0], x.shape[1], kernel.extent(x.shape[2]), kernel.extent(x.shape[3])])
    check_same_dtype("out", out, x.dtype)
    check_dense("out", out)


def _run(backend: str, x: torch.Tensor, direction: int, padding: int, taps: Sequence[float], out: torch.Tensor) -> None:
    _check(x, direction, padding, taps, out)
    if not x.shape[0]:
        return
    samples, channels, height, width = x.shape
    backends.launch(
        "resample",
        backend,
        x.device,
        (samples, height, width),
        channels,
        DTYPE_CODES[x.dtype],
        (direction, padding, list(taps)),
        x.data_ptr(),
        out.data_ptr(),
    )


LIBRARY.define("resample_(Tensor x, int direction, int padding, float[] taps, Tensor(a!) out) -> ()")
LIBRARY.impl("resample_", lambda *args: _run("cpu", *args), "CPU")
LIBRARY.impl("resample_", lambda *args: _run("cuda", *args), "CUDA")


@torch.library.register_fake("edm_fast::resample_", lib=LIBRARY)
def _fake(x: torch.Tensor, direction: int, padding: int, taps: Sequence[float], out: torch.Tensor) -> None:
    _check(x, direction, padding, taps, out)
