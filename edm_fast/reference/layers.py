"""The layers that EDM's U-Nets are made of: Linear, Conv2d, GroupNorm and the two embeddings of the noise label.

Parameters are stored in float32 and cast to the input's dtype at every call, so the same module runs in float32 and in
float16. Resampling filters are buffers named `resample_filter` and belong to the state dict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

InitMode = Literal["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"]


def weight_init(shape: Sequence[int], mode: str, fan_in: int, fan_out: int, scale: float) -> Tensor:
    """Draw initial weights of `shape` in float32 from torch's default generator, times `scale`.

    xavier has variance 2 / (fan_in + fan_out), kaiming 1 / fan_in; `_uniform` and `_normal` name the distribution.
    Where tensors have no content (`torch.device('meta')`) nothing is drawn. Raises ValueError for another mode.
    """
    if torch.get_default_device().type == "meta":
        return torch.empty(*shape)
    if mode == "xavier_uniform":
        drawn = math.sqrt(6 / (fan_in + fan_out)) * (2 * torch.rand(*shape) - 1)
    elif mode == "xavier_normal":
        drawn = math.sqrt(2 / (fan_in + fan_out)) * torch.randn(*shape)
    elif mode == "kaiming_uniform":
        drawn = math.sqrt(3 / fan_in) * (2 * torch.rand(*shape) - 1)
    elif mode == "kaiming_normal":
        drawn = math.sqrt(1 / fan_in) * torch.randn(*shape)
    else:
        raise ValueError(
            f"mode must be xavier_uniform, xavier_normal, kaiming_uniform or kaiming_normal, but it is {mode!r}"
        )
    return drawn * scale


class Linear(nn.Module):
    """y = x Wᵀ + b for x [..., in_features]; weight [out_features, in_features], bias [out_features] or None.

    `init_weight` and `init_bias` scale what `init_mode` draws.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        init_mode: str = "kaiming_normal",
        init_weight: float = 1,
        init_bias: float = 0,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        how = (init_mode, in_features, out_features)
        self.weight = nn.Parameter(weight_init([out_features, in_features], *how, init_weight))
        self.bias = nn.Parameter(weight_init([out_features], *how, init_bias)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out_features] in x's dtype."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.weight.to(x.dtype), bias)


class Conv2d(nn.Module):
    """Convolution with `same` padding, optionally preceded by 2× resampling; x is [N, in_channels, H, W].

    Up: a depthwise transposed convolution of stride 2 with 4·f. Down: a depthwise convolution of stride 2 with f. The
    filter f [1, 1, k, k] is the outer product of the taps `resample_filter`, normalised to sum 1, and is padded by
    (k − 1)//2. With `kernel=0` there is no weight, and the module only resamples. With `fused_resample` the filter's
    and the kernel's paddings are merged: down is the convolution first, padded for both, and then the filter without
    padding; up is the filter padded by what the kernel does not need, and then the convolution.

    Raises ValueError when both `up` and `down` are asked for.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        bias: bool = True,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        fused_resample: bool = False,
        init_mode: str = "kaiming_normal",
        init_weight: float = 1,
        init_bias: float = 0,
    ) -> None:
        if up and down:
            raise ValueError("up and down exclude each other, but both are True")
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.up = up
        self.down = down
        self.fused_resample = fused_resample
        how = (init_mode, in_channels * kernel**2, out_channels * kernel**2)
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if kernel:
            shape = [out_channels, in_channels, kernel, kernel]
            self.weight = nn.Parameter(weight_init(shape, *how, init_weight))
            if bias:
                self.bias = nn.Parameter(weight_init([out_channels], *how, init_bias))
        kernel_2d = None
        if up or down:
            taps = torch.as_tensor(resample_filter, dtype=torch.float32)
            kernel_2d = taps.outer(taps)[None, None] / taps.sum().square()
        self.register_buffer("resample_filter", kernel_2d)

    def _upsample(self, x: Tensor, padding: int) -> Tensor:
        assert self.resample_filter is not None
        weight = self.resample_filter.to(x.dtype).mul(4).tile([x.shape[1], 1, 1, 1])
        return functional.conv_transpose2d(x, weight, groups=x.shape[1], stride=2, padding=padding)

    def _downsample(self, x: Tensor, padding: int) -> Tensor:
        assert self.resample_filter is not None
        weight = self.resample_filter.to(x.dtype).tile([x.shape[1], 1, 1, 1])
        return functional.conv2d(x, weight, groups=x.shape[1], stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, out_channels, H', W'] in x's dtype; H' is 2H (up), H/2 (down) or H."""
        weight = None if self.weight is None else self.weight.to(x.dtype)
        weight_padding = 0 if weight is None else weight.shape[-1] // 2
        filter_padding = 0 if self.resample_filter is None else (self.resample_filter.shape[-1] - 1) // 2

        if self.fused_resample and self.up and weight is not None:
            x = self._upsample(x, max(filter_padding - weight_padding, 0))
            x = functional.conv2d(x, weight, padding=max(weight_padding - filter_padding, 0))
        elif self.fused_resample and self.down and weight is not None:
            x = functional.conv2d(x, weight, padding=weight_padding + filter_padding)
            x = self._downsample(x, 0)
        else:
            if self.up:
                x = self._upsample(x, filter_padding)
            if self.down:
                x = self._downsample(x, filter_padding)
            if weight is not None:
                x = functional.conv2d(x, weight, padding=weight_padding)
        if self.bias is not None:
            x = x + self.bias.to(x.dtype).reshape(1, -1, 1, 1)
        return x


class GroupNorm(nn.Module):
    """y = (x − mean) / √(variance + eps) · weight + bias, statistics per sample and group of channels.

    There are min(num_groups, num_channels // min_channels_per_group) groups. x is [N, num_channels, ...].
    Raises ValueError when the channels do not fall into groups evenly.
    """

    def __init__(
        self, num_channels: int, num_groups: int = 32, min_channels_per_group: int = 4, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.num_groups = min(num_groups, num_channels // min_channels_per_group)
        if self.num_groups < 1 or num_channels % self.num_groups:
            raise ValueError(
                f"num_channels must divide evenly into min({num_groups}, num_channels // {min_channels_per_group}) "
                f"groups, but it is {num_channels}"
            )
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of x's shape and dtype."""
        return functional.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class PositionalEmbedding(nn.Module):
    """[cos(x·f), sin(x·f)] with f_i = (1/max_positions)^(i / (n/2 − endpoint)), i = 0 … n/2−1; [N] → [N, n]."""

    def __init__(self, num_channels: int, max_positions: int = 10000, endpoint: bool = False) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.max_positions = max_positions
        self.endpoint = endpoint

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedding in x's dtype; the frequencies are computed in float32."""
        half = self.num_channels // 2
        exponents = torch.arange(half, dtype=torch.float32, device=x.device) / (half - (1 if self.endpoint else 0))
        angles = x.outer(((1 / self.max_positions) ** exponents).to(x.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """[cos(2π f x), sin(2π f x)] with random frequencies f = scale · N(0, 1), buffer `freqs` [n/2]; [N] → [N, n]."""

    freqs: Tensor

    def __init__(self, num_channels: int, scale: float = 16) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(num_channels // 2) * scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedding in x's dtype."""
        angles = x.outer((2 * math.pi * self.freqs).to(x.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)
