"""RGB images that lie in memory pixel by pixel, in all the ways that a kernel may or may not move by vectors."""

from __future__ import annotations

import torch

# Pixels: a part of a tile of 128, some tiles with a part of one, and a number that no four threads share.
EXTENTS = [(2, 6), (13, 20), (3, 7)]
# How many elements into its memory the first sample begins, and how many lie between samples.
PLACES = [(0, 0), (0, 4), (1, 0), (2, 0), (0, 1), (4, 3)]


def interleaved(images: torch.Tensor, begin: int, between: int) -> torch.Tensor:
    """The same values channels-last, amid NaN."""
    samples, channels, height, width = images.shape
    size = channels * height * width
    memory = torch.full([begin + samples * (size + between)], torch.nan, dtype=images.dtype, device=images.device)
    strides = (size + between, 1, width * channels, channels)
    return memory.as_strided(images.shape, strides, begin).copy_(images)


def assert_nothing_beside(images: torch.Tensor) -> None:
    """What lies between the samples of interleaved() is NaN still."""
    memory = images._base
    assert memory is not None
    images.fill_(torch.nan)
    assert bool(memory.isnan().all())
