"""Layers whose parameters and initialisation are the reference's, and whose forward calls the fused ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from edm_fast.networks.convolution import convolve
from edm_fast.ops.group_norm_silu import group_norm_silu
from edm_fast.ops.resample import resample
from edm_fast.reference import layers as reference
from edm_fast.reference.layers import GroupNorm


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

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, out_channels, H', W'] in x's dtype; H' is 2H (up), H/2 (down) or H."""
        if self.weight is not None and not self.up and not self.down:
            return convolve(x, self.weight, self.bias)
        x = self.without_bias(x)
        return x if self.bias is None else x + self.bias.to(x.dtype).reshape(1, -1, 1, 1)

    def without_bias(self, x: Tensor) -> Tensor:
        """The same before the bias, for callers that add it along with something else."""
        if self.weight is None:
            return self._resampled(x)
        if not self.up and not self.down:
            return convolve(x, self.weight)
        margin, filter_padding = self.weight.shape[-1] // 2, (len(self.taps) - 1) // 2
        if not self.fused_resample:
            return convolve(self._resampled(x), self.weight)
        if self.up:
            x = self._resampled(x, max(filter_padding - margin, 0))
            return convolve(x, self.weight, padding=max(margin - filter_padding, 0))
        return self._resampled(convolve(x, self.weight, padding=margin + filter_padding), 0)

    def _resampled(self, x: Tensor, padding: int | None = None) -> Tensor:
        return resample(x, up=self.up, down=self.down, taps=self.taps, padding=padding)


def normalized(norm: GroupNorm, x: Tensor, **options: Any) -> Any:
    """`edm_fast.ops.group_norm_silu` with the parameters of `norm`."""
    return group_norm_silu(x, norm.weight, norm.bias, norm.num_groups, eps=norm.eps, **options)


def total_bias(*biases: Tensor | None) -> Tensor | None:
    """The sum of those that are there."""
    present = [bias for bias in biases if bias is not None]
    return sum(present[1:], start=present[0]) if present else None
