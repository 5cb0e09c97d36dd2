"""Which of our algorithms a 3×3 convolution takes: the fastest that the rule for rounding errors allows."""

from __future__ import annotations

# The codes of ConvAlgorithm in csrc/include/edm_fast/conv2d.h.
ALGORITHMS = {"direct": 0, "winograd2": 2, "winograd2x4": 24, "winograd4": 4}

# F(4×4) has a rounding error of its own, which long sums hide: from here on it is below twice that of eager PyTorch.
# F(2×4) is below it with any number.
_CHANNELS_FOR_WINOGRAD4 = 128
_SMALLEST_FOR_WINOGRAD4 = 12

# Of the gradient of the weights the rounding is that of sums over the tiles: from so many
# 4x4 tiles on, eager's sums are as long as to hide it.
_TILES_FOR_WINOGRAD4 = 512


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
