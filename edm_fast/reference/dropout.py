"""Dropout by the library's random numbers, in plain PyTorch."""

from __future__ import annotations

import torch

from edm_fast.ops.randn import DOMAIN_DROPOUT
from edm_fast.reference.randn import noise_words

_BLOCKS = 32


def dropout(x: torch.Tensor, p: float, seed: torch.Tensor) -> torch.Tensor:
    """x·(0 with probability p, else 1/(1 − p)), channels-last, for images [N, C, H, W] and a seed int64 [].

    In channels-last order, element i of every 128 takes word i // 32 of block i % 32 of its run, and is dropped where
    that is below p·2³².
    """
    pixels = x.permute(0, 2, 3, 1)
    runs = -(-pixels.numel() // (4 * _BLOCKS))
    words = torch.stack(noise_words(seed.reshape(1), _BLOCKS * runs, 0, DOMAIN_DROPOUT), dim=1)
    drawn = words.reshape(4, runs, _BLOCKS).transpose(0, 1).flatten()[: pixels.numel()].reshape(pixels.shape)
    factor = torch.where(drawn >= int(p * 2**32), torch.tensor(1 / (1 - p), dtype=torch.float32), 0.0)
    exact = torch.promote_types(x.dtype, torch.float32)
    return (pixels.to(exact) * factor.to(exact)).to(x.dtype).permute(0, 3, 1, 2)
