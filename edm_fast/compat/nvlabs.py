"""The samplers of NVlabs/edm by their names, and noise by one torch generator per seed as its tool makes it.

A network object of that code is called as it is. `edm_fast.accelerate(net)` makes a faster one of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from edm_fast.ops.tensors import seed_tensor
from edm_fast.samplers.edm import ablation_sampler, edm_sampler

__all__ = ["StackedRandomGenerator", "ablation_sampler", "edm_sampler"]


class StackedRandomGenerator:
    """One torch.Generator per sample: a sample's numbers depend on its own seed and on nothing else in the batch.

    The tool draws float32 latents first, then class labels if they are random, then a float64 tensor per step; in that
    order the same seeds give the same images.

    Args:
        device: where the numbers are made; PyTorch's generators differ between kinds of devices.
        seeds: an integer per sample, taken modulo 2³².
    """

    def __init__(self, device: torch.device | str, seeds: Iterable[int] | torch.Tensor) -> None:
        self._device = device
        words = seed_tensor(seeds, "cpu").tolist()
        self.generators = [torch.Generator(device).manual_seed(word % 2**32) for word in words]

    def randn(self, size: Sequence[int], **options: Any) -> torch.Tensor:
        """Standard normal numbers [N, …]; `options` are those of torch.randn."""
        return self._stacked(size, lambda shape, generator: torch.randn(shape, generator=generator, **options))

    def randn_like(self, input: torch.Tensor) -> torch.Tensor:
        """Standard normal numbers of the input's shape, dtype, layout and device."""
        return self.randn(input.shape, dtype=input.dtype, layout=input.layout, device=input.device)

    def randint(self, *bounds: int, size: Sequence[int], **options: Any) -> torch.Tensor:
        """Integers [N, …] below `high`, or from `low` to below `high`; `options` are those of torch.randint."""
        if len(bounds) not in (1, 2):
            raise TypeError(f"bounds: got {len(bounds)}; they are high, or low and high")
        low, high = bounds if len(bounds) == 2 else (0, *bounds)
        return self._stacked(
            size, lambda shape, generator: torch.randint(low, high, shape, generator=generator, **options)
        )

    def _stacked(
        self, size: Sequence[int], draw: Callable[[Sequence[int], torch.Generator], torch.Tensor]
    ) -> torch.Tensor:
        if len(size) == 0 or size[0] != len(self.generators):
            raise ValueError(f"size: got {tuple(size)}; the first extent is {len(self.generators)}, one per seed")
        if not self.generators:
            return draw(size, torch.Generator(self._device))
        return torch.stack([draw(size[1:], generator) for generator in self.generators])
