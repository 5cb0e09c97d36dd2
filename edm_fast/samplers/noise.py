"""The noise of `sample`: a keyed stream that needs no state, or a torch generator per seed as NVlabs/edm's tool has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from edm_fast.ops.backends import extension
from edm_fast.ops.randn import DOMAIN_LABELS, randn
from edm_fast.ops.tensors import seed_tensor

RNGS = ("philox", "torch")


class StackedRandomGenerator:
    """One torch.Generator per sample: a sample's numbers depend on its own seed and on nothing else in the batch.

    The tool draws float32 latents first, then a class label if the network has labels, then a float64 tensor per step;
    in that order the same seeds give the same images.

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


def keyed_noise(shape: Sequence[int], seeds: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, Any]]:
    """Latents [N, C, H, W] by (seed, draw 0, element), and what makes `execute` go on with draws 1, 2, …"""
    return randn(shape, seeds, 0, dtype=dtype, device=seeds.device), {"seeds": seeds}


def generator_noise(
    shape: Sequence[int], seeds: torch.Tensor, label_dim: int
) -> tuple[torch.Tensor, dict[str, Any], torch.Tensor]:
    """The tool's noise: latents, what makes `execute` go on with it, and the classes [N] that it draws in between.

    Classes are drawn wherever the network has labels, used or not, so that the steps' noise does not depend on that.
    """
    random = StackedRandomGenerator(seeds.device, seeds)
    latents = random.randn([len(seeds), *shape], dtype=torch.float32, device=seeds.device)
    classes = random.randint(label_dim, size=[len(seeds)], device=seeds.device) if label_dim else seeds.new_zeros(0)
    return latents, {"randn_like": random.randn_like}, classes


def random_classes(seeds: torch.Tensor, label_dim: int, rng: str, shape: Sequence[int]) -> list[int]:
    """A class for each seed, uniform over label_dim: `random_class`, or the one that the tool's generators draw."""
    if rng == "torch":
        return generator_noise(shape, seeds, label_dim)[2].tolist()
    return [random_class(seed, label_dim) for seed in seeds.tolist()]


def random_class(seed: int, label_dim: int) -> int:
    """A class for a seed, uniform over label_dim; from the same keyed stream as the noise, in a domain of its own."""
    if label_dim < 1:
        raise ValueError(f"label_dim: got {label_dim}; it must be at least 1")
    word = extension().noise_words(seed % 2**64, 0, 0, DOMAIN_LABELS)[0]
    return word * label_dim >> 32
