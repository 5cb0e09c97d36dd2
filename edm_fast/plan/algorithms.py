"""Which convolution algorithm a layer gets: by its shape per sample, so that results do not depend on the batch."""

from __future__ import annotations

from typing import get_args

from edm_fast.ops.conv2d import ALGORITHMS
from edm_fast.plan.ir import Algorithm, Conv

CODES = ALGORITHMS
CHOICES = ("auto", *get_args(Algorithm))

# Below this many input channels the transforms of Winograd's forms cost more than they save.
_FEW_CHANNELS = 16
# F(4×4) has a rounding error of its own, which long sums hide: from here on it is below twice that of eager PyTorch.
# F(2×4) is below it with any number.
_CHANNELS_FOR_WINOGRAD4 = 128


def choose(conv: Conv, wanted: str) -> Algorithm:
    """The algorithm for a layer: `wanted`, where it can be had, or the fastest for the layer's shape."""
    if conv.kernel != 3 or len(conv.sources) > 1 or conv.sources[0].channels < _FEW_CHANNELS:
        return "direct"
    if wanted != "auto":
        return wanted  # type: ignore[return-value]
    smallest = min(conv.out.height, conv.out.width)
    if smallest >= 12 and conv.sources[0].channels >= _CHANNELS_FOR_WINOGRAD4:
        return "winograd4"
    return "winograd2x4" if smallest >= 4 else "direct"
