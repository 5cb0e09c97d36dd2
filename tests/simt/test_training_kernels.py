"""Kernels of training give the same bits in every order of threads."""

from __future__ import annotations

import torch
from tolerance import assert_same_bits

from edm_fast.ops.denoising_loss import denoising_loss
from edm_fast.ops.noise_augment import LevelRule, noise_augment

ORDERS = [("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)]


def test_every_order_of_threads_gives_the_same(simt_module):
    """One thread makes the sample's row for all, and one adds up the warps' sums of the loss."""
    images = torch.randn([3, 3, 9, 9], generator=torch.Generator().manual_seed(0))
    results = []
    try:
        for name, seed in ORDERS:
            simt_module.set_thread_order(getattr(simt_module.ThreadOrder, name), seed)
            noisy = noise_augment(images, LevelRule("log_normal", -1.2, 1.2), [1, 2, 3], backend="simt")
            loss = denoising_loss(noisy.net_input, images, noisy.rows, [1, 2, 3], backend="simt")
            results.append((noisy.net_input, noisy.rows, loss))
    finally:
        simt_module.set_thread_order(simt_module.ThreadOrder.forward, 0)
    for other in results[1:]:
        for got, wanted in zip(other, results[0], strict=True):
            assert_same_bits(got, wanted)
