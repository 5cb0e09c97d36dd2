"""Which convolution algorithm a layer gets: by its shape per sample, so that results do not depend on the batch."""

from __future__ import annotations

from typing import get_args

import torch

from edm_fast.ops.backends import extension
from edm_fast.ops.conv2d_forms import ALGORITHMS, fastest_winograd, takes_tiles
from edm_fast.plan.ir import Algorithm, Conv

CODES = ALGORITHMS
# What `prepare` takes, by the type of its device.
CHOICES = {"cpu": ("auto", *get_args(Algorithm)), "cuda": ("auto", "split")}

# Below this many input channels the transforms of Winograd's forms cost more than they save.
_FEW_CHANNELS = 16
# Below so many pixels in a row or column tiles hang over.
_SMALLEST_FOR_WINOGRAD = 4


def takes_pairs(conv: Conv, dtype: torch.dtype) -> bool:
    """Whether a layer's products multiply pairs of bfloat16: where images are stored in it and the processor can."""
    even = all(source.channels % 2 == 0 for source in conv.sources)
    return dtype == torch.bfloat16 and even and extension().cpu.multiplies_pairs()


def choose(conv: Conv, wanted: str, pairs: bool = False) -> Algorithm:
    """The algorithm for a layer: `wanted`, where it can be had, or the fastest that is exact enough for its shape."""
    in_tiles = pairs and takes_tiles([source.channels for source in conv.sources])
    if wanted in ("auto", "tiles"):
        if in_tiles:
            return "tiles"
        wanted = "auto"
    if conv.kernel != 3 or len(conv.sources) > 1 or conv.sources[0].channels < _FEW_CHANNELS:
        return "direct"
    if wanted != "auto":
        return wanted  # type: ignore[return-value]
    smallest = min(conv.out.height, conv.out.width)
    if smallest < _SMALLEST_FOR_WINOGRAD:
        return "direct"
    if pairs:
        # The wider forms round too much in what they transform: F(2×2) errs 2.6 times as much as the direct form in a
        # layer, F(2×4) 4.2 times, F(4×4) 7 times.
        return "winograd2"
    return fastest_winograd(conv.sources[0].channels, smallest)  # type: ignore[return-value]
