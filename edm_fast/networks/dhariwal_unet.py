"""ADM of Dhariwal and Nichol (2021) as EDM configures it, by fused ops."""

from __future__ import annotations

import torch
from torch import Tensor

from edm_fast.networks.blocks import UNetBlock
from edm_fast.networks.layers import Conv2d, GroupNorm
from edm_fast.reference import dhariwal_unet as reference
from edm_fast.reference.song_unet import check_image


class DhariwalUNet(reference.DhariwalUNet):
    """`edm_fast.reference.dhariwal_unet.DhariwalUNet`, with the same arguments, keys, initial weights and results."""

    block_class = UNetBlock
    conv_class = Conv2d
    norm_class = GroupNorm

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """As the reference's, in any of the ops' dtypes."""
        check_image(x, self.in_channels, self.num_levels)
        emb = self.embed(noise_labels, class_labels, augment_labels, batch=x.shape[0])
        x = x.contiguous(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        for module in self.enc.values():
            x = module(x, emb) if isinstance(module, UNetBlock) else module(x)
            skips.append(x)
        for module in self.dec.values():
            x = module(x, emb, skips.pop() if x.shape[1] != module.in_channels else None)
        return self.out_conv(self.out_norm(x, silu=True))
