"""The residual block that both U-Nets are stacked from, by fused ops."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from edm_fast.networks.layers import Conv2d, GroupNorm, total_bias
from edm_fast.ops.attention import attention
from edm_fast.ops.dropout import dropout
from edm_fast.ops.residual import residual
from edm_fast.reference import unet_block as reference


class UNetBlock(reference.UNetBlock):
    """`edm_fast.reference.unet_block.UNetBlock`, whose equation it computes with fewer passes over the images.

    Norm, SiLU and resampling are one op, which also reads the concatenation of two sources and resamples for the skip
    path. The biases of convolutions go where the result is read next: into the norm's embedding, or into the sum at
    the end.
    """

    conv_class = Conv2d
    norm_class = GroupNorm
    norm0: GroupNorm
    norm1: GroupNorm
    norm2: GroupNorm
    conv0: Conv2d
    conv1: Conv2d
    skip: Conv2d | None
    qkv: Conv2d
    proj: Conv2d

    def forward(self, x: Tensor, emb: Tensor, x2: Tensor | None = None) -> Tensor:
        """Return [N, out_channels, H', W'] in x's dtype, channels-last.

        Args:
            x: [N, in_channels, H, W], or less with x2.
            emb: [N or 1, emb_channels]; `affine` runs in its dtype.
            x2: [N, the rest of in_channels, H, W], behind x in the channels.
        """
        conv0, skip = self.conv0, self.skip
        resampling: dict[str, Any] = {"up": conv0.up, "down": conv0.down, "taps": conv0.taps}
        plain = x2 is not None or conv0.up or conv0.down
        normed = self.norm0(x, silu=True, x2=x2, plain=plain, **resampling)
        h, shortcut = normed if plain else (normed, x)

        h = conv0(h, with_bias=False, resampled=True)
        e = self.affine(emb)
        if self.adaptive_scale:
            scale, shift = e.chunk(2, dim=1)
            first_bias = None if conv0.bias is None else conv0.bias[None]
            h = self.norm1(h, silu=True, pre_bias=first_bias, scale=scale, shift=shift)
        else:
            h = self.norm1(h, silu=True, pre_bias=e if conv0.bias is None else e + conv0.bias)
        if self.training and self.dropout:
            h = dropout(h, self.dropout)

        skip_bias = None
        if skip is not None and skip.weight is not None:
            shortcut, skip_bias = skip(shortcut, with_bias=False, resampled=True), skip.bias
        if not self.num_heads:
            last_bias = total_bias(self.conv1.bias, skip_bias)
            return residual(self.conv1(h, with_bias=False), shortcut, last_bias, self.skip_scale)
        h = self.conv1(h, extra_bias=skip_bias)
        normed, x = self.norm2(h, addend=shortcut, sum_scale=self.skip_scale)
        attended = self.proj(attention(self.qkv(normed), self.num_heads), with_bias=False)
        return residual(attended, x, self.proj.bias, self.skip_scale)
