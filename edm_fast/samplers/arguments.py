"""Checks of what callers pass to the samplers. Each error names the argument, what it got and what it wants."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from edm_fast.plan import Prepared

Labels = torch.Tensor | Sequence[int] | None

# A table of more steps would fill memory before the first image, or take hours to make.
MOST_STEPS = 100_000


def check_count(name: str, value: Any, most: int | None = None) -> int:
    """An integer of at least 1, and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: got {value!r}; it is an integer")
    if value < 1:
        raise ValueError(f"{name}: got {value}; it must be at least 1")
    count = int(value)
    if most is not None and count > most:
        raise ValueError(f"{name}: got {count}; it must be at most {most}")
    return count


def check_levels(sigmas: np.ndarray) -> None:
    """Noise levels that a solver can step through: finite, positive, not rising."""
    if not (np.isfinite(sigmas).all() and (sigmas > 0).all() and (np.diff(sigmas) <= 0).all()):
        raise ValueError(
            f"sigma_min, sigma_max: the noise levels from {sigmas[0]:g} to {sigmas[-1]:g}, rounded as the network "
            "asks, are not positive, finite and decreasing"
        )


def check_number(name: str, value: Any) -> float:
    """A real number that is not NaN, as a float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {value!r}; it is a number")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name}: got a number beyond the range of float64") from None
    if math.isnan(number):
        raise ValueError(f"{name}: got NaN; it must be a number")
    return number


def check_positive(name: str, value: Any, finite: bool = True) -> float:
    number = check_number(name, value)
    if number <= 0 or (finite and math.isinf(number)):
        raise ValueError(f"{name}: got {value}; it must be positive{' and finite' if finite else ''}")
    return number


def check_sigma_range(sigma_min: Any, sigma_max: Any) -> tuple[float, float]:
    low = check_positive("sigma_min", sigma_min)
    high = check_positive("sigma_max", sigma_max)
    if low > high:
        raise ValueError(f"sigma_min: got {low}, which is above sigma_max = {high}")
    return low, high


def clamp_to_net(sigma_min: float, sigma_max: float, net: Any) -> tuple[float, float]:
    """The range cut to what the network accepts; ValueError if nothing is left."""
    net_min, net_max = float(getattr(net, "sigma_min", 0)), float(getattr(net, "sigma_max", math.inf))
    low, high = max(sigma_min, net_min), min(sigma_max, net_max)
    if low > high:
        raise ValueError(
            f"sigma_min, sigma_max: [{sigma_min}, {sigma_max}] lies outside the network's noise levels "
            f"[{net_min}, {net_max}]"
        )
    return low, high


def check_churn(S_churn: Any, S_min: Any, S_max: Any, S_noise: Any) -> tuple[float, float, float, float]:
    churn = check_number("S_churn", S_churn)
    if churn < 0:
        raise ValueError(f"S_churn: got {S_churn}; it must not be negative")
    noise = check_number("S_noise", S_noise)
    if noise < 0 or math.isinf(noise):
        raise ValueError(f"S_noise: got {S_noise}; it must be finite and not negative")
    return churn, check_number("S_min", S_min), check_number("S_max", S_max), noise


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: got {value!r}; it is one of {', '.join(repr(choice) for choice in choices)}")
    return value


def check_network(name: str, net: Any) -> None:
    if not callable(net):
        raise TypeError(f"{name}: got {type(net).__name__}; a network, net(x, sigma, class_labels), is needed")


def check_strided(name: str, tensor: torch.Tensor) -> None:
    """A tensor of which every element lies in memory: not a sparse one."""
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: layout is {tensor.layout}; it must be torch.strided")


def check_latents(latents: Any, net: Any) -> torch.Tensor:
    """A floating-point batch whose images fit the network, on the network's device."""
    if not isinstance(latents, torch.Tensor):
        raise TypeError(f"latents: got {type(latents).__name__}; it is a tensor [N, C, H, W]")
    if not latents.is_floating_point():
        raise TypeError(f"latents: dtype is {latents.dtype}; it must be a floating-point type")
    check_strided("latents", latents)
    if latents.dim() < 2:
        raise ValueError(f"latents: shape is {tuple(latents.shape)}; a batch [N, C, H, W] is needed")
    channels, resolution = getattr(net, "img_channels", None), getattr(net, "img_resolution", None)
    if channels is not None and latents.dim() != 4:
        raise ValueError(f"latents: shape is {tuple(latents.shape)}; the network takes [N, {channels}, H, W]")
    if latents.dim() == 4:
        if channels is not None and latents.shape[1] != channels:
            raise ValueError(f"latents: {latents.shape[1]} channels; the network has {channels}")
        if isinstance(resolution, int) and tuple(latents.shape[2:]) != (resolution, resolution):
            raise ValueError(
                f"latents: images of {latents.shape[2]}x{latents.shape[3]}; the network makes {resolution}x{resolution}"
            )
    device = net_device(net)
    if device is not None and device != latents.device:
        raise ValueError(f"latents: on {latents.device}; the network is on {device}")
    return latents


def net_device(net: Any) -> torch.device | None:
    """Where the network's parameters lie; None if it has none."""
    if isinstance(net, Prepared):
        net = net.net
    if isinstance(net, torch.nn.Module):
        for tensor in [*net.parameters(), *net.buffers()]:
            return tensor.device
    return None


def label_rows(
    class_labels: Labels, samples: int, label_dim: int | None, device: torch.device, broadcast: bool = False
) -> torch.Tensor | None:
    """Labels as float32 rows [N, label_dim], or None.

    A list or 1-D integer tensor holds class ids, one per sample; a 2-D tensor holds one-hot or soft rows. `label_dim`
    is None if the network does not tell it: ids are then refused and rows of any width pass.
    """
    if class_labels is None:
        return None
    labels = class_labels if isinstance(class_labels, torch.Tensor) else _listed(class_labels)
    if label_dim == 0:
        raise ValueError("class_labels: given, and the network is unconditional (label_dim = 0)")
    if labels.is_meta:
        raise ValueError("class_labels: on meta, where tensors have no values")
    if labels.is_complex():
        raise TypeError(f"class_labels: dtype is {labels.dtype}; ids are integers and rows are real numbers")
    check_strided("class_labels", labels)
    if labels.dim() == 1:
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise TypeError(f"class_labels: 1-D labels are class ids and must be integers, not {labels.dtype}")
        if label_dim is None:
            raise ValueError("class_labels: ids need a network with label_dim; pass rows [N, label_dim] instead")
        _check_count(labels, samples, broadcast=False)
        labels = labels.long()  # ids beyond int64 become negative
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < label_dim:
            wrong = labels[(labels < 0) | (labels >= label_dim)][0]
            raise ValueError(f"class_labels: id {int(wrong)} is not between 0 and {label_dim - 1}")
        rows = torch.nn.functional.one_hot(labels, label_dim)
    elif labels.dim() == 2:
        if label_dim is not None and labels.shape[1] != label_dim:
            raise ValueError(f"class_labels: rows of width {labels.shape[1]}; the network wants {label_dim}")
        _check_count(labels, samples, broadcast)
        if labels.is_floating_point() and not bool(torch.isfinite(labels).all()):
            raise ValueError("class_labels: NaN or infinity in the rows; they must be finite")
        rows = labels
    else:
        raise ValueError(f"class_labels: {labels.dim()} dimensions; ids are 1-D and rows are 2-D")
    return rows.to(device=device, dtype=torch.float32)


def _listed(class_labels: Any) -> torch.Tensor:
    if isinstance(class_labels, (dict, set, frozenset)):
        raise TypeError(f"class_labels: got a {type(class_labels).__name__}; labels are in order, one per sample")
    try:
        if isinstance(class_labels, np.ndarray):
            return torch.as_tensor(class_labels)
        listed = list(class_labels)
        for label in listed:
            if isinstance(label, int) and not -(1 << 63) <= label < 1 << 63:
                raise OverflowError(f"class_labels: id {label} does not fit in 64 bits")
        return torch.tensor(listed) if listed else torch.zeros([0], dtype=torch.int64)
    except OverflowError as error:
        raise ValueError(str(error)) from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"class_labels: got {class_labels!r}; a list of ids or a tensor is needed ({error})") from None


def _check_count(labels: torch.Tensor, samples: int, broadcast: bool) -> None:
    if labels.shape[0] != samples and not (broadcast and labels.shape[0] == 1):
        raise ValueError(f"class_labels: {labels.shape[0]} labels for {samples} samples")
