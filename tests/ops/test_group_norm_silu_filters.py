"""group_norm_silu with resampling by every number of taps, on images whose sides are no multiples of anything."""

from __future__ import annotations

import itertools

import pytest
import torch
from tolerance import assert_as_exact_as_eager

from edm_fast.ops.group_norm_silu import group_norm_silu
from edm_fast.reference.group_norm_silu import group_norm_silu as reference

TAPS = [(1, 1), (1, 3, 3, 1), (2, 1, 1, 2), (1, 5, 10, 10, 5, 1)]
# Channels, height and width; of 5 channels a pixel is not moved by whole vectors.
SHAPES = [(32, 2, 3), (32, 9, 6), (5, 7, 5), (64, 4, 14)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("taps", TAPS, ids=str)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_both_results_are_resampled(backend, device, guards, direction, taps, dtype):
    for seed, (channels, height, width) in enumerate(SHAPES):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn([2, channels, height, width], generator=generator) * 2 + 1
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        weight, bias = torch.randn([2, channels], generator=generator)
        options = {direction: True, "taps": taps, "plain": True}
        arguments = (x.to(device), weight.to(device), bias.to(device), channels // 4 or 1)
        ours = group_norm_silu(*arguments, **options, backend=backend)
        eager, exact = (
            reference(x.to(kind), weight.to(w), bias.to(w), channels // 4 or 1, **options)
            for kind, w in ((dtype, torch.float32), (torch.float64, torch.float64))
        )
        for name, *parts in zip(("out", "plain"), ours, eager, exact, strict=True):
            assert_as_exact_as_eager(*parts, what=f"{channels} x {height} x {width}, {name}")


def test_a_missing_neighbour_is_not_a_zero_times_infinity(backend, device):
    """Infinity in a corner reaches the outputs that have it among their taps, and makes no NaN of others."""
    for direction, taps in itertools.product(("up", "down"), TAPS):
        x = torch.zeros([1, 8, 6, 6]).contiguous(memory_format=torch.channels_last)
        x[0, 0, 0, 0] = torch.inf
        options = {direction: True, "taps": taps, "plain": True}
        ones = torch.ones(8, device=device)
        _, plain = group_norm_silu(x.to(device), ones, ones, 8, **options, backend=backend)
        expected = reference(x, ones.cpu(), ones.cpu(), 8, **options)[1]
        assert torch.equal(plain.cpu().isfinite(), expected.isfinite()), (direction, taps)
        assert not plain.isnan().any(), (direction, taps)
