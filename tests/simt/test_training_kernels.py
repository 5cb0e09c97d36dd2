"""Kernels of training give the same bits in every order of threads."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_same_bits

from edm_fast.ops.denoising_loss import denoising_loss
from edm_fast.ops.noise_augment import LevelRule, noise_augment

ORDERS = [("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)]


@pytest.mark.parametrize("size", [9, 10])
def test_every_order_of_threads_gives_the_same(simt_module, size):
    """One thread makes the sample's row for all, and one adds up the warps' sums of the loss; threads exchange RGB."""
    images = torch.randn([3, 3, size, size], generator=torch.Generator().manual_seed(0))
    last = torch.channels_last
    results = []
    try:
        for name, seed in ORDERS:
            simt_module.set_thread_order(getattr(simt_module.ThreadOrder, name), seed)
            rule = LevelRule("log_normal", -1.2, 1.2)
            noisy = noise_augment(images, rule, [1, 2, 3], memory_format=last, backend="simt")
            loss = denoising_loss(noisy.net_input, images, noisy.rows, [1, 2, 3], backend="simt")
            results.append((noisy.net_input, noisy.rows, loss))
    finally:
        simt_module.set_thread_order(simt_module.ThreadOrder.forward, 0)
    for other in results[1:]:
        for got, wanted in zip(other, results[0], strict=True):
            assert_same_bits(got, wanted)


@pytest.mark.parametrize("channels", [3, 4])
def test_a_large_error_does_not_swallow_small_ones(simt_module, channels):
    """Beside 2^26 in float32, ones of every later pixel that a thread adds are nothing."""
    y = torch.zeros(1, channels, 64, 64)
    rows = torch.zeros(1, 7)
    rows[:, 3] = rows[:, 6] = 1  # weight and c_out, so that the loss is F²
    output = torch.ones_like(y)
    output[0, 0, 0, 0] = 2.0**13
    loss = denoising_loss(output, y, rows, noise=torch.zeros_like(y), backend="simt")
    assert abs(float(loss) - (2.0**26 + y.numel() - 1)) <= 8
