"""DDPM++ and NCSN++ of Song et al. (2021) as EDM configures them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edm_fast.reference.layers import Conv2d, FourierEmbedding, GroupNorm, Linear, PositionalEmbedding
from edm_fast.reference.unet_block import UNetBlock


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is among `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, but it is {value!r}")


def check_image(x: Tensor, channels: int, levels: int) -> None:
    """Raise ValueError unless x is [N, channels, H, W] with H and W divisible by 2^(levels − 1)."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"x must be [N, {channels}, H, W], but its shape is {list(x.shape)}")
    multiple = 2 ** (levels - 1)
    if x.shape[2] % multiple or x.shape[3] % multiple or not x.shape[2] or not x.shape[3]:
        raise ValueError(
            f"x must have a height and a width that {levels} levels divide (multiples of {multiple}), "
            f"but its shape is {list(x.shape)}"
        )


def drop_labels(labels: Tensor, batch: int, probability: float) -> Tensor:
    """labels · mask, mask [batch, 1] ~ Bernoulli(1 − probability); labels [N or 1, label_dim]."""
    keep = torch.rand([batch, 1], device=labels.device) >= probability
    return labels * keep.to(labels.dtype)


class SongUNet(nn.Module):
    """F(x; c_noise, labels): a U-Net whose keys and constructor arguments are those of EDM's checkpoints.

    Level i has resolution R = img_resolution >> i and model_channels · channel_mult[i] channels; modules are named
    `RxR_<part>`. `ddpmpp` is the default configuration without augmentation; `ncsnpp` has embedding_type='fourier',
    encoder_type='residual', channel_mult_noise=2 and resample_filter=[1, 3, 3, 1].

    Args:
        img_resolution: height and width of the images; the levels are named by it.
        in_channels, out_channels: of x and of F.
        label_dim: width of the class label rows; 0 for none.
        augment_dim: width of the augmentation label rows; 0 for none.
        model_channels, channel_mult: channels of level i are model_channels · channel_mult[i].
        channel_mult_emb: the embedding has model_channels · channel_mult_emb numbers.
        num_blocks: residual blocks of a level in the encoder; the decoder has one more.
        attn_resolutions: resolutions with self-attention, as img_resolution >> i names them.
        dropout: probability in every block while training.
        label_dropout: probability that a sample's labels are zeros while training, as guidance needs it.
        embedding_type: of the noise level: "positional" or "fourier" (random frequencies, kept in the checkpoint).
        channel_mult_noise: the noise level's embedding has model_channels · channel_mult_noise numbers.
        encoder_type: "standard", or "skip" or "residual" with the input resampled beside it at every level.
        decoder_type: "standard", or "skip" with an output added up over the levels.
        resample_filter: taps of the filter of resampling, an even number of them; divided by their sum.

    Raises ValueError for an unknown embedding_type, encoder_type or decoder_type.
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
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        one_of("embedding_type", embedding_type, ("positional", "fourier"))
        one_of("encoder_type", encoder_type, ("standard", "skip", "residual"))
        one_of("decoder_type", decoder_type, ("standard", "skip"))
        super().__init__()
        self.img_resolution = img_resolution
        self.in_channels = in_channels
        self.label_dim = label_dim
        self.augment_dim = augment_dim
        self.num_levels = len(channel_mult)
        self.label_dropout = label_dropout
        emb_channels = model_channels * channel_mult_emb
        noise_channels = model_channels * channel_mult_noise
        self._init: dict[str, Any] = {"init_mode": "xavier_uniform"}
        self._init_zero: dict[str, Any] = {"init_mode": "xavier_uniform", "init_weight": 1e-5}
        self._block: dict[str, Any] = {
            "emb_channels": emb_channels,
            "num_heads": 1,
            "dropout": dropout,
            "skip_scale": math.sqrt(0.5),
            "eps": 1e-6,
            "resample_filter": resample_filter,
            "resample_proj": True,
            "adaptive_scale": False,
            "init": self._init,
            "init_zero": self._init_zero,
            "init_attn": {"init_mode": "xavier_uniform", "init_weight": math.sqrt(0.2)},
        }

        self.map_noise = (
            PositionalEmbedding(noise_channels, endpoint=True)
            if embedding_type == "positional"
            else FourierEmbedding(noise_channels)
        )
        self.map_label = Linear(label_dim, noise_channels, **self._init) if label_dim else None
        self.map_augment = Linear(augment_dim, noise_channels, bias=False, **self._init) if augment_dim else None
        self.map_layer0 = Linear(noise_channels, emb_channels, **self._init)
        self.map_layer1 = Linear(emb_channels, emb_channels, **self._init)

        widths = [model_channels * multiplier for multiplier in channel_mult]
        resample = {"resample_filter": resample_filter}
        self.enc = nn.ModuleDict()
        skip_channels = self._build_encoder(
            widths, model_channels, num_blocks, attn_resolutions, encoder_type, resample
        )
        self.dec = nn.ModuleDict()
        self._build_decoder(widths, skip_channels, num_blocks, attn_resolutions, decoder_type, out_channels, resample)

    def _build_encoder(
        self,
        widths: list[int],
        model_channels: int,
        num_blocks: int,
        attn_resolutions: Sequence[int],
        encoder_type: str,
        resample: dict[str, Any],
    ) -> list[int]:
        """Fill `enc` and return the channel counts of the outputs that go on the skip stack, first to last."""
        channels, aux_channels = model_channels, self.in_channels
        skip_channels = []
        for level, width in enumerate(widths):
            resolution = self.img_resolution >> level
            name = f"{resolution}x{resolution}"
            if level == 0:
                self.enc[f"{name}_conv"] = self.conv_class(self.in_channels, channels, kernel=3, **self._init)
            else:
                self.enc[f"{name}_down"] = self.block_class(channels, channels, down=True, **self._block)
                if encoder_type == "skip":
                    self.enc[f"{name}_aux_down"] = self.conv_class(
                        aux_channels, aux_channels, kernel=0, down=True, **resample
                    )
                    self.enc[f"{name}_aux_skip"] = self.conv_class(aux_channels, channels, kernel=1, **self._init)
                if encoder_type == "residual":
                    self.enc[f"{name}_aux_residual"] = self.conv_class(
                        aux_channels, channels, kernel=3, down=True, fused_resample=True, **resample, **self._init
                    )
                    aux_channels = channels
            skip_channels.append(channels)
            for index in range(num_blocks):
                attend = resolution in attn_resolutions
                self.enc[f"{name}_block{index}"] = self.block_class(channels, width, attention=attend, **self._block)
                channels = width
                skip_channels.append(channels)
        return skip_channels

    def _build_decoder(
        self,
        widths: list[int],
        skip_channels: list[int],
        num_blocks: int,
        attn_resolutions: Sequence[int],
        decoder_type: str,
        out_channels: int,
        resample: dict[str, Any],
    ) -> None:
        """Fill `dec`; each block takes one output off the skip stack."""
        unused = list(skip_channels)
        channels = unused[-1]
        lowest = len(widths) - 1
        for level, width in reversed(list(enumerate(widths))):
            resolution = self.img_resolution >> level
            name = f"{resolution}x{resolution}"
            if level == lowest:
                self.dec[f"{name}_in0"] = self.block_class(channels, channels, attention=True, **self._block)
                self.dec[f"{name}_in1"] = self.block_class(channels, channels, **self._block)
            else:
                self.dec[f"{name}_up"] = self.block_class(channels, channels, up=True, **self._block)
            for index in range(num_blocks + 1):
                attend = index == num_blocks and resolution in attn_resolutions
                self.dec[f"{name}_block{index}"] = self.block_class(
                    channels + unused.pop(), width, attention=attend, **self._block
                )
                channels = width
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and level < lowest:
                    self.dec[f"{name}_aux_up"] = self.conv_class(
                        out_channels, out_channels, kernel=0, up=True, **resample
                    )
                self.dec[f"{name}_aux_norm"] = self.norm_class(channels, eps=1e-6)
                self.dec[f"{name}_aux_conv"] = self.conv_class(channels, out_channels, kernel=3, **self._init_zero)

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
        # Checkpoints were trained with the sine half first, the reverse of what the embedding returns.
        emb = self.map_noise(noise_labels)
        emb = torch.cat(emb.chunk(2, dim=1)[::-1], dim=1)
        if self.map_label is not None and class_labels is not None:
            if self.training and self.label_dropout:
                class_labels = drop_labels(class_labels, batch or class_labels.shape[0], self.label_dropout)
            emb = emb + self.map_label(class_labels * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return functional.silu(self.map_layer1(functional.silu(self.map_layer0(emb))))

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
        skips = self._encode(x, emb)
        return self._decode(skips, emb)

    def _encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        skips: list[Tensor] = []
        aux = x
        for name, module in self.enc.items():
            if name.endswith("_aux_down"):
                aux = module(aux)
            elif name.endswith("_aux_skip"):
                x = skips[-1] = x + module(aux)
            elif name.endswith("_aux_residual"):
                x = skips[-1] = aux = (x + module(aux)) / math.sqrt(2)
            else:
                x = module(x, emb) if isinstance(module, UNetBlock) else module(x)
                skips.append(x)
        return skips

    def _decode(self, skips: list[Tensor], emb: Tensor) -> Tensor:
        x = skips[-1]
        aux: Tensor | None = None
        head = x
        for name, module in self.dec.items():
            if name.endswith("_aux_up"):
                aux = module(aux)
            elif name.endswith("_aux_norm"):
                head = functional.silu(module(x))
            elif name.endswith("_aux_conv"):
                output = module(head)
                aux = output if aux is None else output + aux
            else:
                if x.shape[1] != module.in_channels:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = module(x, emb)
        assert aux is not None
        return aux
