"""The CUDA kernel of augment is one launch, and gives the same bits in every order of threads."""

from __future__ import annotations

import torch
from tolerance import assert_as_exact_as_eager, assert_same_bits

from edm_fast.ops.augment import augment
from edm_fast.reference.augment import AugmentPipe
from edm_fast.reference.augment import augment as reference

ORDERS = [("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)]


def test_every_order_of_threads_gives_the_same(simt_module):
    """Several channels and tiles, so that shared memory is used again."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.randn(2, 3, 18, 18)
        blit, geometry, colour, _ = AugmentPipe(xflip=1, rotate_frac=1, brightness=1, hue=1).draw(2, 18, 18)
    results = []
    try:
        for name, seed in ORDERS:
            simt_module.set_thread_order(getattr(simt_module.ThreadOrder, name), seed)
            before = simt_module.launch_count()
            results.append(augment(images, blit, geometry, colour, backend="simt"))
            assert simt_module.launch_count() - before == 1
    finally:
        simt_module.set_thread_order(simt_module.ThreadOrder.forward, 0)
    for other in results[1:]:
        assert_same_bits(other, results[0])
    exact = reference(images.double(), blit, geometry, colour)
    assert_as_exact_as_eager(results[0], reference(images, blit, geometry, colour), exact)
