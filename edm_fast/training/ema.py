"""Exponential moving average of a network's weights, with EDM's half-life in images."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


def ema_decay(batch: int, images_seen: int, half_life: float, ramp_up: float | None = 0.05) -> float:
    """β = ½^(batch/h) with h = min(half_life, ramp_up·images_seen), all in images; 0 while h is 0.

    The ramp keeps the random initial weights from lingering in the average of a short run; None turns it off.
    """
    if ramp_up is not None:
        half_life = min(half_life, ramp_up * images_seen)
    return 0.5 ** (batch / half_life) if half_life > 0 else 0.0


@torch.no_grad()
def average_in(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Give the parameters of `average` p̄ ← β·p̄ + (1 − β)·p of `net`'s, β = decay, and copies of its buffers.

    One call for all parameters, a few launches on CUDA, with the bits of one call for each.
    """
    parameters: list[Tensor] = list(average.parameters())
    if parameters:
        torch._foreach_lerp_(parameters, list(net.parameters()), 1 - decay)
    buffers = list(average.buffers())
    if buffers:
        torch._foreach_copy_(buffers, list(net.buffers()))


class EMA(Generic[Net]):
    """Holds `net`, a copy in eval mode whose parameters follow p̄ ← β·p̄ + (1 − β)·p; buffers are copied.

    `half_life` is in images, `ramp_up` a fraction of the images seen or None. Raises ValueError for negative values.
    Several half-lives are a list of these.
    """

    def __init__(self, net: Net, half_life: float, ramp_up: float | None = 0.05) -> None:
        for name, value in (("half_life", half_life), ("ramp_up", ramp_up)):
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must not be negative, but it is {value}")
        self.net: Net = copy.deepcopy(net).eval().requires_grad_(False)
        self.half_life = half_life
        self.ramp_up = ramp_up

    def update(self, net: Net, images_seen: int, batch: int) -> None:
        """Take in the weights that `net` has after a step of `batch` images; `images_seen` counts those before it."""
        average_in(self.net, net, ema_decay(batch, images_seen, self.half_life, self.ramp_up))
