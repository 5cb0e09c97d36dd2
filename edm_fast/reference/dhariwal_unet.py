"""ADM of Dhariwal and Nichol (2021) as EDM configures it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edm_fast.reference.layers import Conv2d, GroupNorm, Linear, PositionalEmbedding
from edm_fast.reference.song_unet import check_image, drop_labels
from edm_fast.reference.unet_block import UNetBlock


class DhariwalUNet(nn.Module):
    """F(x; c_noise, labels): a U-Net whose keys and constructor arguments are those of EDM's checkpoints.

    Level i has resolution R = img_resolution >> i and model_channels · channel_mult[i] channels; modules are named
    `RxR_<part>`. Attention heads have 64 channels, so a level with fewer has no attention at all.

    The arguments are those of `SongUNet` with the same names.
    """

    # What the parts are made by; subclasses with another forward put theirs here.
    block_class: type[UNetBlock] = UNetBlock
    conv_class: type[Conv2d] = Conv2d
    norm_class: type[GroupNorm] = GroupNorm

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0,
    ) -> None:
        super().__init__()
        self.img_resolution = img_resolution
        self.in_channels = in_channels
        self.label_dim = label_dim
        self.augment_dim = augment_dim
        self.num_levels = len(channel_mult)
        self.label_dropout = label_dropout
        emb_channels = model_channels * channel_mult_emb
        init: dict[str, Any] = {
            "init_mode": "kaiming_uniform",
            "init_weight": math.sqrt(1 / 3),
            "init_bias": math.sqrt(1 / 3),
        }
        init_zero: dict[str, Any] = {"init_mode": "kaiming_uniform", "init_weight": 0, "init_bias": 0}
        self._block: dict[str, Any] = {
            "emb_channels": emb_channels,
            "channels_per_head": 64,
            "dropout": dropout,
            "init": init,
            "init_zero": init_zero,
        }

        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = Linear(augment_dim, model_channels, bias=False, **init_zero) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, **init)
        self.map_layer1 = Linear(emb_channels, emb_channels, **init)
        self.map_label = (
            Linear(label_dim, emb_channels, bias=False, init_mode="kaiming_normal", init_weight=math.sqrt(label_dim))
            if label_dim
            else None
        )

        widths = [model_channels * multiplier for multiplier in channel_mult]
        self.enc = nn.ModuleDict()
        skip_channels = self._build_encoder(widths, num_blocks, attn_resolutions, init)
        self.dec = nn.ModuleDict()
        self._build_decoder(widths, skip_channels, num_blocks, attn_resolutions)
        self.out_norm = self.norm_class(widths[0])
        self.out_conv = self.conv_class(widths[0], out_channels, kernel=3, **init_zero)

    def _build_encoder(
        self, widths: list[int], num_blocks: int, attn_resolutions: Sequence[int], init: dict[str, Any]
    ) -> list[int]:
        """Fill `enc` and return the channel counts of its outputs, first to last; all go on the skip stack."""
        channels = widths[0]
        skip_channels = []
        for level, width in enumerate(widths):
            resolution = self.img_resolution >> level
            name = f"{resolution}x{resolution}"
            if level == 0:
                self.enc[f"{name}_conv"] = self.conv_class(self.in_channels, channels, kernel=3, **init)
            else:
                self.enc[f"{name}_down"] = self.block_class(channels, channels, down=True, **self._block)
            skip_channels.append(channels)
            for index in range(num_blocks):
                attend = resolution in attn_resolutions
                self.enc[f"{name}_block{index}"] = self.block_class(channels, width, attention=attend, **self._block)
                channels = width
                skip_channels.append(channels)
        return skip_channels

    def _build_decoder(
        self, widths: list[int], skip_channels: list[int], num_blocks: int, attn_resolutions: Sequence[int]
    ) -> None:
        """Fill `dec`; each block takes one output off the skip stack."""
        unused = list(skip_channels)
        channels = unused[-1]
        for level, width in reversed(list(enumerate(widths))):
            resolution = self.img_resolution >> level
            name = f"{resolution}x{resolution}"
            if level == len(widths) - 1:
                self.dec[f"{name}_in0"] = self.block_class(channels, channels, attention=True, **self._block)
                self.dec[f"{name}_in1"] = self.block_class(channels, channels, **self._block)
            else:
                self.dec[f"{name}_up"] = self.block_class(channels, channels, up=True, **self._block)
            for index in range(num_blocks + 1):
                attend = resolution in attn_resolutions
                self.dec[f"{name}_block{index}"] = self.block_class(
                    channels + unused.pop(), width, attention=attend, **self._block
                )
                channels = width

    def embed(
        self,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        batch: int | None = None,
    ) -> Tensor:
        """Return the embedding [N or 1, emb_channels] that every block receives; labels are rows [N or 1, ...].

        `batch` is the number of images, the size of the label-dropout mask in training.
        """
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(functional.silu(self.map_layer0(emb)))
        if self.map_label is not None and class_labels is not None:
            if self.training and self.label_dropout:
                class_labels = drop_labels(class_labels, batch or class_labels.shape[0], self.label_dropout)
            emb = emb + self.map_label(class_labels)
        return functional.silu(emb)

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """Return F [N, out_channels, H, W] in x's dtype.

        Args:
            x: [N, in_channels, H, W], float32 or float16; H and W divisible by 2^(levels − 1).
            noise_labels: c_noise, [N] or [1], float32.
            class_labels: [N, label_dim] or [1, label_dim], float32, or None.
            augment_labels: [N, augment_dim], float32, or None.

        Raises ValueError for a wrong channel count or resolution.
        """
        check_image(x, self.in_channels, self.num_levels)
        emb = self.embed(noise_labels, class_labels, augment_labels, batch=x.shape[0])
        skips: list[Tensor] = []
        for module in self.enc.values():
            x = module(x, emb) if isinstance(module, UNetBlock) else module(x)
            skips.append(x)
        for module in self.dec.values():
            if x.shape[1] != module.in_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = module(x, emb)
        return self.out_conv(functional.silu(self.out_norm(x)))
