"""DDPM++ and NCSN++ of Song et al. (2021) as EDM configures them, by fused ops."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from edm_fast.networks.blocks import UNetBlock
from edm_fast.networks.layers import Conv2d, GroupNorm
from edm_fast.ops.residual import residual
from edm_fast.reference import song_unet as reference


class SongUNet(reference.SongUNet):
    """`edm_fast.reference.song_unet.SongUNet`, with the same arguments, keys, initial weights and results."""

    block_class = UNetBlock
    conv_class = Conv2d
    norm_class = GroupNorm

    def _encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        skips: list[Tensor] = []
        x = aux = x.contiguous(memory_format=torch.channels_last)
        for name, module in self.enc.items():
            if name.endswith("_aux_down"):
                aux = module(aux)
            elif name.endswith("_aux_skip"):
                x = skips[-1] = _added(cast(Conv2d, module), aux, x, 1.0)
            elif name.endswith("_aux_residual"):
                x = skips[-1] = aux = _added(cast(Conv2d, module), aux, x, math.sqrt(0.5))
            else:
                x = module(x, emb) if isinstance(module, UNetBlock) else module(x)
                skips.append(x)
        return skips

    def _decode(self, skips: list[Tensor], emb: Tensor) -> Tensor:
        x = head = skips[-1]
        aux: Tensor | None = None
        for name, module in self.dec.items():
            if name.endswith("_aux_up"):
                aux = module(aux)
            elif name.endswith("_aux_norm"):
                head = module(x, silu=True)
            elif name.endswith("_aux_conv"):
                conv = cast(Conv2d, module)
                aux = conv(head) if aux is None else _added(conv, head, aux, 1.0)
            else:
                x2 = skips.pop() if x.shape[1] != module.in_channels else None
                x = module(x, emb, x2)
        assert aux is not None
        return aux


def _added(conv: Conv2d, source: Tensor, x: Tensor, scale: float) -> Tensor:
    """(x + conv(source)) · scale."""
    return residual(conv(source, with_bias=False), x, conv.bias, scale)
