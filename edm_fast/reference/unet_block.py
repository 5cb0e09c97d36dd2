"""The residual block, with optional resampling and self-attention, that both U-Nets are stacked from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edm_fast.reference.attention import self_attention
from edm_fast.reference.layers import Conv2d, GroupNorm, Linear


class UNetBlock(nn.Module):
    """Residual block: norm, SiLU, conv0 (resampling), embedding, norm, SiLU, dropout, conv1, skip; then attention.

    h = conv0(silu(norm0(x))); then, with e = affine(emb):
      adaptive_scale=False:  h = silu(norm1(h + e))
      adaptive_scale=True:   h = silu(norm1(h)·(1 + scale) + shift), e = [scale, shift]
    h = conv1(dropout(h)); y = (h + skip(x))·skip_scale; then, with attention,
    y = (proj(attend(qkv(norm2(y)))) + y)·skip_scale.

    `skip` is a 1×1 convolution when the channel count changes or `resample_proj` is set, otherwise a bare resampling;
    it is absent when neither channels nor resolution change. Heads: `num_heads`, or out_channels // channels_per_head
    (which may be 0: no attention). x is [N, in_channels, H, W], emb [N or 1, emb_channels].

    `init`, `init_zero` and `init_attn` are keyword arguments for the initialisation of ordinary layers, of the layers
    that end a residual branch, and of qkv.
    """

    conv_class: type[Conv2d] = Conv2d
    norm_class: type[GroupNorm] = GroupNorm

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
        num_heads: int | None = None,
        channels_per_head: int = 64,
        dropout: float = 0,
        skip_scale: float = 1,
        eps: float = 1e-5,
        resample_filter: Sequence[float] = (1, 1),
        resample_proj: bool = False,
        adaptive_scale: bool = True,
        init: Mapping[str, Any] | None = None,
        init_zero: Mapping[str, Any] | None = None,
        init_attn: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        init = dict(init or {})
        init_zero = dict(init_zero if init_zero is not None else {"init_weight": 0})
        init_attn = dict(init_attn if init_attn is not None else init)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.emb_channels = emb_channels
        if not attention:
            self.num_heads = 0
        else:
            self.num_heads = num_heads if num_heads is not None else out_channels // channels_per_head
        self.dropout = dropout
        self.skip_scale = skip_scale
        self.adaptive_scale = adaptive_scale

        resampling: dict[str, Any] = {"up": up, "down": down, "resample_filter": resample_filter}
        self.norm0 = self.norm_class(in_channels, eps=eps)
        self.conv0 = self.conv_class(in_channels, out_channels, kernel=3, **resampling, **init)
        self.affine = Linear(emb_channels, out_channels * (2 if adaptive_scale else 1), **init)
        self.norm1 = self.norm_class(out_channels, eps=eps)
        self.conv1 = self.conv_class(out_channels, out_channels, kernel=3, **init_zero)
        self.skip: Conv2d | None = None
        if in_channels != out_channels or up or down:
            kernel = 1 if resample_proj or in_channels != out_channels else 0
            self.skip = self.conv_class(in_channels, out_channels, kernel=kernel, **resampling, **init)
        if self.num_heads:
            self.norm2 = self.norm_class(out_channels, eps=eps)
            self.qkv = self.conv_class(out_channels, out_channels * 3, kernel=1, **init_attn)
            self.proj = self.conv_class(out_channels, out_channels, kernel=1, **init_zero)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return [N, out_channels, H', W'] in x's dtype; `affine` runs in emb's dtype and its result is rounded."""
        residual = x if self.skip is None else self.skip(x)
        x = self.conv0(functional.silu(self.norm0(x)))
        modulation = self.affine(emb)[:, :, None, None].to(x.dtype)
        if self.adaptive_scale:
            scale, shift = modulation.chunk(2, dim=1)
            x = functional.silu(torch.addcmul(shift, self.norm1(x), scale + 1))
        else:
            x = functional.silu(self.norm1(x + modulation))
        x = self.conv1(functional.dropout(x, p=self.dropout, training=self.training))
        x = (x + residual) * self.skip_scale
        return self._attend(x) if self.num_heads else x

    def _attend(self, x: Tensor) -> Tensor:
        """Self-attention over pixels. Inside a head q, k and v interleave channel by channel."""
        attended = self_attention(self.qkv(self.norm2(x)), self.num_heads)
        return (self.proj(attended) + x) * self.skip_scale
