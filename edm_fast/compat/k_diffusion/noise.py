"""Where a sampler's noise comes from: a noise sampler, a function like torch.randn_like, or our own by seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edm_fast.ops.tensors import seed_tensor
from edm_fast.samplers.evaluation import checked_output

# noise_sampler(sigma, sigma_next) → standard normal noise like x.
NoiseSampler = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
RandnLike = Callable[[torch.Tensor], torch.Tensor]
Seeds = int | Iterable[int] | torch.Tensor


@dataclass(frozen=True)
class Noise:
    """Noise number k of a run: draw(k), or, where `seeds` (int64 [N]) are given, what `solver_step` makes of them."""

    draw: Callable[[int], torch.Tensor] | None = None
    seeds: torch.Tensor | None = None


def noise_of(
    x: torch.Tensor,
    levels: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    noise_sampler: NoiseSampler | None,
    randn_like: RandnLike | None,
    seeds: Seeds | None,
    default: Callable[[], NoiseSampler] | None = None,
) -> Noise:
    """The one source that the caller names; without any `default()`, or else torch.randn_like.

    levels: the noise levels between which noise number k lies.
    """
    sources = {"noise_sampler": noise_sampler, "randn_like": randn_like, "seeds": seeds}
    given = [name for name, source in sources.items() if source is not None]
    if len(given) > 1:
        raise ValueError(f"{', '.join(given)}: noise has one source; give one of them")
    if seeds is not None:
        keys = seed_tensor(seeds, x.device)
        if len(keys) != x.shape[0]:
            raise ValueError(f"seeds: got {len(keys)}; x has {x.shape[0]} samples")
        return Noise(seeds=keys)
    if noise_sampler is None and randn_like is None and default is not None:
        noise_sampler = default()
    if noise_sampler is not None:
        sampler = _callable("noise_sampler", noise_sampler)
        return Noise(lambda k: checked_output(sampler(*levels(k)), x, "noise_sampler"))
    like = _callable("randn_like", torch.randn_like if randn_like is None else randn_like)
    return Noise(lambda k: checked_output(like(x), x, "randn_like"))


def _callable(name: str, function: Any) -> Callable[..., Any]:
    if not callable(function):
        raise TypeError(f"{name}: got {function!r}; it is a function")
    checked: Callable[..., Any] = function
    return checked


class BrownianTreeNoiseSampler:
    """Noise as increments of a Brownian path in σ, so that it does not depend on how the way is cut into steps.

    A call with (sigma, sigma_next) gives the path's increment over that way, divided by √|sigma_next - sigma|. Needs
    torchsde (`pip install 'edm-fast[sde]'`); the same seeds give what k-diffusion's class of this name gives.

    Args:
        x: its shape, dtype and device are those of the noise.
        sigma_min, sigma_max: ends of the path.
        seed: one for the whole batch, or a list with one per sample, each with a path of its own; by default one from
            torch's global generator.
        transform: the path's clock, a monotonic function of σ.
    """

    def __init__(
        self,
        x: torch.Tensor,
        sigma_min: float | torch.Tensor,
        sigma_max: float | torch.Tensor,
        seed: int | Sequence[int] | None = None,
        transform: Callable[[torch.Tensor], torch.Tensor] = lambda sigma: sigma,
    ) -> None:
        try:
            import torchsde
        except ImportError:
            raise ImportError(
                "noise_sampler: the default, a Brownian tree, needs torchsde: pip install 'edm-fast[sde]', or "
                "give noise_sampler, randn_like or seeds"
            ) from None
        if seed is None:
            seed = int(torch.randint(0, 2**63 - 1, []))
        self._transform = transform
        self._per_sample = not isinstance(seed, (int, np.integer))
        seeds = [int(seed)] if isinstance(seed, (int, np.integer)) else [int(each) for each in seed]
        if self._per_sample and len(seeds) != x.shape[0]:
            raise ValueError(f"seed: got {len(seeds)}; x has {x.shape[0]} samples")
        low, high, self._direction = self._way(sigma_min, sigma_max)
        at_start = torch.zeros_like(x[0] if self._per_sample else x)
        self._paths = [torchsde.BrownianTree(low, at_start, high, entropy=entropy) for entropy in seeds]

    def __call__(self, sigma: float | torch.Tensor, sigma_next: float | torch.Tensor) -> torch.Tensor:
        low, high, direction = self._way(sigma, sigma_next)
        increments = [path(low, high) for path in self._paths]
        increment = torch.stack(increments) if self._per_sample else increments[0]
        return increment * (self._direction * direction) / (high - low).sqrt()

    def _way(self, start: float | torch.Tensor, end: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Both ends on the path's clock, the lower first, and whether time runs upwards (1) or downwards (-1)."""
        from_, to = self._transform(torch.as_tensor(start)), self._transform(torch.as_tensor(end))
        return (from_, to, 1) if from_ < to else (to, from_, -1)
