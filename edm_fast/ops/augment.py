"""Augmentation of training images, each with parameters of its own: moves of pixels, a warp, a change of colours."""

from __future__ import annotations

import torch

from edm_fast.ops import backends
from edm_fast.ops.library import LIBRARY
from edm_fast.ops.tensors import (
    address,
    check_device,
    check_images,
    check_same_dtype,
    check_shape,
    check_writable,
    image_view,
    viewable,
)


def augment(
    images: torch.Tensor,
    blit: torch.Tensor | None = None,
    geometry: torch.Tensor | None = None,
    colour: torch.Tensor | None = None,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """The images after `blit`, `geometry` and `colour` in turn, in the images' memory format; not differentiable.

    blit: out[row, column] = x[row + up, column − right] of the flipped and then transposed image x, which goes on by
    reflection about its first and last pixels (period 2W − 2).

    geometry: the image is doubled, warped and halved. With the taps h of the wavelet sym6, along each axis,

        u[j] = Σ_i h[j − 2i + 5]·x[i]             up
        v[j] = u[A·(j − c) + 2b + c]              bilinear; c = (W − 1, H − 1)
        out[i] = Σ_k h[k]·v[2i + k − 5]           down

    where [A b] takes positions in the output to positions in the input, in pixels, x to the right and y down, with the
    origin at the image's centre. x goes on by reflection for W − 1 and H − 1 pixels on all sides, and u is 0 beyond
    these pixels' elements 2i and 2i + 1. That is padding as wide as any sample needs: no result depends on how wide it
    is made, nor on the other samples. A = 1, b = 0 changes nothing if H and W are 4 or more, and takes no filter then.

    colour: [r, g, b] becomes M·[r, g, b, 1]; grey, of one channel, the mean of what [g, g, g] becomes.

    Args:
        images: [N, C, H, W], float32. What is neither contiguous nor channels-last, nor samples or channels of such a
            tensor, is copied first. float64 runs on the reference.
        blit: integers [N, 5]: flip x, flip y, transpose (each 0 or not), right, up. None leaves it out. Transposing
            needs square images, which is for the caller to see to: in others it is left out.
        geometry: [N, 2, 3], any float dtype, finite: A and b. None leaves it out.
        colour: [N, 3, 4], any float dtype: M, for images of 1 or 3 channels. None leaves it out.
        backend: None (by device), "cpu", "cuda" or "reference".

    Raises:
        ValueError, TypeError: an argument outside of this; its name comes first.
    """
    check_images("images", images)
    chosen = backends.choose_for("augment", backend, images)
    if chosen == "reference":
        from edm_fast.reference.augment import augment as reference_augment

        _check_parameters(images, blit, geometry, colour)
        return torch.empty_like(images).copy_(reference_augment(images, blit, geometry, colour))
    if torch.is_grad_enabled() and images.requires_grad:
        raise ValueError("images: they require gradients, which augment does not have; use backend='reference'")
    images = viewable(images)
    blit = None if blit is None else blit.to(torch.int32).contiguous()
    geometry = None if geometry is None else geometry.to(torch.float32).contiguous()
    colour = None if colour is None else colour.to(torch.float32).contiguous()
    out = torch.empty_like(images)
    if backend is None:
        torch.ops.edm_fast.augment_(images, blit, geometry, colour, out)
    else:
        _run(backend, images, blit, geometry, colour, out)
    return out


def _check_parameters(
    images: torch.Tensor, blit: torch.Tensor | None, geometry: torch.Tensor | None, colour: torch.Tensor | None
) -> None:
    samples, channels = images.shape[:2]
    shapes = {
        "blit": (blit, [samples, 5]),
        "geometry": (geometry, [samples, 2, 3]),
        "colour": (colour, [samples, 3, 4]),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is not None:
            check_device(name, tensor, images.device)
            check_shape(name, tensor, shape)
    if colour is not None and channels not in (1, 3):
        raise ValueError(f"colour: the images have {channels} channels; it is for images of 1 or 3")


def _check(
    images: torch.Tensor,
    blit: torch.Tensor | None,
    geometry: torch.Tensor | None,
    colour: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    check_images("images", images)
    if images.dtype != torch.float32:
        raise TypeError(f"images: dtype is {images.dtype}; the kernels take float32")
    _check_parameters(images, blit, geometry, colour)
    for name, tensor, dtype in (
        ("blit", blit, torch.int32),
        ("geometry", geometry, torch.float32),
        ("colour", colour, torch.float32),
    ):
        if tensor is not None:
            check_same_dtype(name, tensor, dtype)
            if not tensor.is_contiguous():
                raise ValueError(f"{name}: strides are {tuple(tensor.stride())}; it must be contiguous")
    check_device("out", out, images.device)
    check_shape("out", out, images.shape)
    check_same_dtype("out", out, torch.float32)
    check_writable("out", out)


def _run(
    backend: str,
    images: torch.Tensor,
    blit: torch.Tensor | None,
    geometry: torch.Tensor | None,
    colour: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    _check(images, blit, geometry, colour, out)
    views = image_view("images", images), image_view("out", out)
    if not images.shape[0]:
        return
    parameters = address(blit), address(geometry), address(colour)
    backends.launch("augment", backend, images.device, tuple(images.shape), views[0], *parameters, views[1])


LIBRARY.define("augment_(Tensor images, Tensor? blit, Tensor? geometry, Tensor? colour, Tensor(a!) out) -> ()")
LIBRARY.impl("augment_", lambda *args: _run("cpu", *args), "CPU")
LIBRARY.impl("augment_", lambda *args: _run("cuda", *args), "CUDA")


@torch.library.register_fake("edm_fast::augment_", lib=LIBRARY)
def _fake(
    images: torch.Tensor,
    blit: torch.Tensor | None,
    geometry: torch.Tensor | None,
    colour: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    _check(images, blit, geometry, colour, out)
