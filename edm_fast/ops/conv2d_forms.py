"""Which of our algorithms a 3×3 convolution takes: the fastest that the rule for rounding errors allows."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch

from edm_fast.ops.backends import extension

# The codes of ConvAlgorithm in csrc/include/edm_fast/conv2d.h.
ALGORITHMS = {"direct": 0, "winograd2": 2, "winograd2x4": 24, "winograd4": 4, "tiles": 16}

# Of a row of a matrix tile, in bfloat16.
TILE_CHANNELS = 32

# F(4×4) has a rounding error of its own, which long sums hide: from here on it is below twice that of eager PyTorch.
# F(2×4) is below it with any number.
_CHANNELS_FOR_WINOGRAD4 = 128
_SMALLEST_FOR_WINOGRAD4 = 12

# Rounding of the gradient of the weights is that of sums over the tiles: from so many tiles of 4×4 on, eager's sums are
# long enough to hide it, nearly always also where few values are much larger than the others.
_TILES_FOR_WINOGRAD4 = 2048


@torch.compiler.assume_constant_result
def has_tiles() -> bool:
    """Whether the instructions in use multiply matrix tiles of bfloat16 (AMX)."""
    return bool(extension().cpu.multiplies_tiles())


@torch.compiler.assume_constant_result
def library_has_tiles() -> bool:
    """Whether oneDNN, behind PyTorch, may use them too."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "AMX")
    used = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return has_tiles() and bool(used) and "AMX" in allowed.upper()


def takes_tiles(channels: Iterable[int]) -> bool:
    """Whether sources of so many channels, in bfloat16, can go through matrix tiles."""
    return all(count % TILE_CHANNELS == 0 for count in channels) and has_tiles()


def fastest_winograd(channels: int, smallest: int) -> str:
    """Which of Winograd's forms is the fastest that is exact enough, for inputs of so many channels.

    `smallest` is the smaller of the output's height and width. The choice does not depend on the batch.
    """
    if smallest >= _SMALLEST_FOR_WINOGRAD4 and channels >= _CHANNELS_FOR_WINOGRAD4:
        return "winograd4"
    return "winograd2x4"


def fastest_weight_gradient(samples: int, height: int, width: int) -> str:
    """Which form to take for the gradient of 3×3 weights, from that of so many outputs."""
    tiles = samples * (-(-height // 4)) * (-(-width // 4))
    return "winograd4" if tiles >= _TILES_FOR_WINOGRAD4 else "winograd2x4"
