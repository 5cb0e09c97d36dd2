"""Layers whose parameters and initialisation are the reference's, and whose forward calls the fused ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from edm_fast.networks.convolution import convolve
from edm_fast.ops.group_norm_silu import group_norm_silu
from edm_fast.ops.resample import resample
from edm_fast.reference import layers as reference


class Conv2d(reference.Conv2d):
    """`edm_fast.reference.layers.Conv2d` in channels-last, with its resampling by `edm_fast.ops.resample`.

    `taps` are the 1-D taps, normalised to sum 1; they follow the buffer `resample_filter` when a state dict is loaded.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        bias: bool = True,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        **options: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, bias, up, down, resample_filter, **options)
        total = sum(resample_filter)
        self.taps = tuple(tap / total for tap in resample_filter)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.resample_filter is not None and not self.resample_filter.is_meta:
            # f fᵀ with sum(f) = 1: its rows sum to f.
            self.taps = tuple(self.resample_filter[0, 0].double().sum(dim=1).tolist())

    def forward(
        self, x: Tensor, with_bias: bool = True, extra_bias: Tensor | None = None, resampled: bool = False
    ) -> Tensor:
        """Return [N, out_channels, H', W'] in x's dtype; H' is 2H (up), H/2 (down) or H.

        Callers that add the bias along with something else leave it out here; or they add another one, [out_channels].
        `resampled`: what x says it is, so that the convolution alone is left.
        """
        bias = total_bias(self.bias if with_bias else None, extra_bias)
        if self.weight is None:
            return self._resampled(x)
        if resampled:
            return convolve(x, self.weight, bias)
        if self.fused_resample and self.down:
            x = self._resampled(convolve(x, self.weight, padding=self._margin() + self._filter_padding()), 0)
            return x if bias is None else x + bias.to(x.dtype).reshape(1, -1, 1, 1)
        if self.fused_resample and self.up:
            x = self._resampled(x, max(self._filter_padding() - self._margin(), 0))
            return convolve(x, self.weight, bias, max(self._margin() - self._filter_padding(), 0))
        if self.up or self.down:
            x = self._resampled(x)
        return convolve(x, self.weight, bias)

    def _margin(self) -> int:
        """What the kernel needs on each side."""
        return 0 if self.weight is None else self.weight.shape[-1] // 2

    def _filter_padding(self) -> int:
        return (len(self.taps) - 1) // 2

    def _resampled(self, x: Tensor, padding: int | None = None) -> Tensor:
        return resample(x, up=self.up, down=self.down, taps=self.taps, padding=padding)


class GroupNorm(reference.GroupNorm):
    """`edm_fast.reference.layers.GroupNorm`, with all that `edm_fast.ops.group_norm_silu` does besides."""

    def forward(self, x: Tensor, silu: bool = False, **options: Any) -> Any:
        """Return what the op returns for these options; without any, the normalised x."""
        return group_norm_silu(x, self.weight, self.bias, self.num_groups, eps=self.eps, silu=silu, **options)


def total_bias(*biases: Tensor | None) -> Tensor | None:
    """The sum of those that are there."""
    present = [bias for bias in biases if bias is not None]
    return sum(present[1:], start=present[0]) if present else None
