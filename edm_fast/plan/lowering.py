"""From a U-Net to the graph of its operations: fused norms, skips without concatenation, residuals in epilogues."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from edm_fast.networks import DhariwalUNet, SongUNet
from edm_fast.plan.ir import Attention, Columns, Conv, Graph, GroupNormSilu, Image, Resample, Resampling, Residual
from edm_fast.reference import dhariwal_unet, song_unet
from edm_fast.reference.unet_block import UNetBlock


def lower(network: Any, height: int, width: int, *, plain_skips: bool = False) -> Graph:
    """The graph of a SongUNet or DhariwalUNet in evaluation mode, for images of height × width.

    `plain_skips`: 1×1 skips read what norm0 writes beside its output, concatenated and resampled, so that a matrix
    product is all that they are. Otherwise they read the block's own sources, and come before 2× upsampling.

    Raises ValueError if a level does not divide the image, TypeError for another network.
    """
    if not can_lower(network):
        raise TypeError(f"net: a plan needs a SongUNet or a DhariwalUNet, and this is a {type(network).__name__}")
    divisor = 2 ** (network.num_levels - 1)
    if height % divisor or width % divisor or height < 1 or width < 1:
        raise ValueError(f"x: {height}x{width} pixels; {network.num_levels} levels need multiples of {divisor}")
    builder = _Builder(Image("input", network.in_channels, height, width), plain_skips)
    output = _dhariwal(builder, network) if hasattr(network, "out_norm") else _song(builder, network)
    return Graph(builder.input, output, builder.operations, builder.affines)


def can_lower(network: Any) -> bool:
    """Whether `lower` knows the architecture; a subclass with a forward of its own is another one."""
    return type(network) in (song_unet.SongUNet, dhariwal_unet.DhariwalUNet, SongUNet, DhariwalUNet)


def _song(build: _Builder, network: Any) -> Image:
    x = aux = build.input
    skips: list[Image] = []
    for name, module in network.enc.items():
        if name.endswith("_aux_down"):
            aux = build.resample(name, aux, module)
        elif name.endswith("_aux_skip"):
            x = skips[-1] = build.conv(name, module, (aux,), residual=x)
        elif name.endswith("_aux_residual"):
            x = skips[-1] = aux = build.residual(name, build.downsampled_conv(name, module, aux), x, math.sqrt(0.5))
        else:
            x = build.block(name, module, (x,)) if isinstance(module, UNetBlock) else build.conv(name, module, (x,))
            skips.append(x)
    output: Image | None = None
    head = x
    for name, module in network.dec.items():
        if name.endswith("_aux_up"):
            assert output is not None
            output = build.resample(name, output, module)
        elif name.endswith("_aux_norm"):
            head = build.norm(name, module, (x,))
        elif name.endswith("_aux_conv"):
            output = build.conv(name, module, (head,), residual=output)
        else:
            x = build.block(name, module, (x,) if x.channels == module.in_channels else (x, skips.pop()))
    assert output is not None
    return output


def _dhariwal(build: _Builder, network: Any) -> Image:
    x = build.input
    skips: list[Image] = []
    for name, module in network.enc.items():
        x = build.block(name, module, (x,)) if isinstance(module, UNetBlock) else build.conv(name, module, (x,))
        skips.append(x)
    for name, module in network.dec.items():
        x = build.block(name, module, (x,) if x.channels == module.in_channels else (x, skips.pop()))
    return build.conv("out_conv", network.out_conv, (build.norm("out_norm", network.out_norm, (x,)),))


class _Builder:
    """Appends operations; each method returns the image that it makes."""

    def __init__(self, image: Image, plain_skips: bool) -> None:
        self.input = image
        self.plain_skips = plain_skips
        self.operations: list[Any] = []
        self.affines: list[nn.Module] = []
        self._columns = 0

    def conv(
        self,
        name: str,
        module: Any,
        sources: Sequence[Image],
        *,
        residual: Image | None = None,
        residual_up: bool = False,
        scale: float = 1.0,
        padding: int | None = None,
        packed_qkv: bool = False,
        biases: Sequence[nn.Parameter | None] | None = None,
    ) -> Image:
        """A convolution; `biases` in place of its own."""
        kernel = module.weight.shape[-1]
        padding = kernel // 2 if padding is None else padding
        grown = 2 * padding - kernel + 1
        out = Image(name, module.weight.shape[0], sources[0].height + grown, sources[0].width + grown)
        added = tuple(bias for bias in ([module.bias] if biases is None else biases) if bias is not None)
        self.operations.append(
            Conv(module, tuple(sources), out, kernel, padding, added, residual, residual_up, scale, packed_qkv)
        )
        return out

    def norm(self, name: str, module: Any, sources: Sequence[Image], **options: Any) -> Image:
        out = Image(name, sum(source.channels for source in sources), sources[0].height, sources[0].width)
        self.operations.append(GroupNormSilu(module, tuple(sources), out, **options))
        return out

    def resampled_norm(
        self, name: str, module: Any, sources: Sequence[Image], resampling: Resampling, plain: bool
    ) -> tuple[Image, Image | None]:
        channels = sum(source.channels for source in sources)
        size = _resampled_size(sources[0], resampling)
        out = Image(name, channels, *size)
        untouched = Image(f"{name}.plain", channels, *size) if plain else None
        self.operations.append(
            GroupNormSilu(module, tuple(sources), out, resampling=resampling, plain=untouched),
        )
        return out, untouched

    def resample(self, name: str, source: Image, module: Any, padding: int | None = None) -> Image:
        resampling = resampling_of(module, padding)
        out = Image(name, source.channels, *_resampled_size(source, resampling))
        self.operations.append(Resample(source, out, resampling))
        return out

    def residual(self, name: str, a: Image, b: Image, scale: float) -> Image:
        out = Image(f"{name}.sum", a.channels, a.height, a.width)
        self.operations.append(Residual(a, b, out, scale))
        return out

    def downsampled_conv(self, name: str, module: Any, source: Image) -> Image:
        """A convolution of the merged padding, and then the filter without any (`fused_resample`)."""
        padding = module.weight.shape[-1] // 2 + (module.resample_filter.shape[-1] - 1) // 2
        return self.resample(f"{name}.down", self.conv(name, module, (source,), padding=padding), module, padding=0)

    def columns(self, affine: Any, parts: int) -> list[Columns]:
        """The next columns of the modulation rows, in `parts` equal parts."""
        width = affine.weight.shape[0] // parts
        found = [Columns(self._columns + part * width, width) for part in range(parts)]
        self.affines.append(affine)
        self._columns += parts * width
        return found

    def block(self, name: str, block: Any, sources: Sequence[Image]) -> Image:
        """A UNetBlock: norm0, conv0, norm1, conv1 with the residual in its epilogue; attention likewise."""
        up, down = block.conv0.up, block.conv0.down
        resampling = resampling_of(block.conv0) if up or down else Resampling()
        # Going up, the 1×1 skip comes before the resampling: a quarter of the work, and for [1, 1] no image of its own.
        projected = block.skip is not None and block.skip.weight is not None
        concatenated = len(sources) > 1 and (self.plain_skips or not projected)
        plain = concatenated or ((up or down) and (self.plain_skips or not (up and projected)))
        h, untouched = self.resampled_norm(f"{name}.norm0", block.norm0, sources, resampling, plain)
        h = self.conv(f"{name}.conv0", block.conv0, (h,))
        if block.adaptive_scale:
            scale, shift = self.columns(block.affine, 2)
            h = self.norm(f"{name}.norm1", block.norm1, (h,), scale=scale, shift=shift)
        else:
            [bias] = self.columns(block.affine, 1)
            h = self.norm(f"{name}.norm1", block.norm1, (h,), pre_bias=bias)
        residual_up = False
        biases = [block.conv1.bias]
        if not projected:
            residual = untouched if untouched is not None else sources[0]
        elif untouched is None and up:
            # A bias before the filter would fade at the border, where the filter sees zeros.
            residual = self.conv(f"{name}.skip", block.skip, sources, biases=())
            biases.append(block.skip.bias)
            residual_up = resampling.taps == (0.5, 0.5)
            if not residual_up:
                residual = self.resample(f"{name}.skip.up", residual, block.skip)
        else:
            residual = self.conv(f"{name}.skip", block.skip, sources if untouched is None else (untouched,))
        x = self.conv(
            f"{name}.conv1",
            block.conv1,
            (h,),
            residual=residual,
            residual_up=residual_up,
            scale=block.skip_scale,
            biases=biases,
        )
        if not block.num_heads:
            return x
        h = self.norm(f"{name}.norm2", block.norm2, (x,), silu=False)
        qkv = self.conv(f"{name}.qkv", block.qkv, (h,), packed_qkv=True)
        attended = Image(f"{name}.attention", x.channels, x.height, x.width)
        self.operations.append(Attention(qkv, attended, block.num_heads))
        return self.conv(f"{name}.proj", block.proj, (attended,), residual=x, scale=block.skip_scale)


def resampling_of(module: Any, padding: int | None = None) -> Resampling:
    """The resampling of a Conv2d with `up` or `down`; its 2-D filter is an outer product with sum 1."""
    # Each row sum of the outer product t tᵀ / (sum t)² is a tap of t / sum t.
    taps = tuple(module.resample_filter[0, 0].double().sum(dim=1).tolist())
    if len(taps) % 2:
        raise ValueError(f"net: a resample filter of {len(taps)} taps; plans need an even number")
    return Resampling(1 if module.up else -1, taps, (len(taps) - 1) // 2 if padding is None else padding)


def _resampled_size(source: Image, resampling: Resampling) -> tuple[int, int]:
    taps, padding = len(resampling.taps), resampling.padding
    if resampling.direction > 0:
        return 2 * source.height - 2 + taps - 2 * padding, 2 * source.width - 2 + taps - 2 * padding
    if resampling.direction < 0:
        return (source.height + 2 * padding - taps) // 2 + 1, (source.width + 2 * padding - taps) // 2 + 1
    return source.height, source.width
