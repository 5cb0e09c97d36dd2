"""Training losses of table 1: weighted denoising errors λ(σ)·(D(y + n; σ) − y)², unreduced.

Each is called as `loss(net, images, labels=None, augment_pipe=None)` and returns a tensor of images' shape. `sigma`
[N, 1, 1, 1] and `noise` (standard normal, like images; n = σ·noise) can be given instead of being drawn, from
torch's default generator of the images' device: σ first, then what augment_pipe draws, then the noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

AugmentPipe = Callable[[Tensor], "tuple[Tensor, Tensor]"]


class _Loss:
    """The part that the three losses share; they differ in the distribution of σ and in the weight."""

    def draw_sigma(self, images: Tensor) -> Tensor:
        """Draw noise levels [N, 1, 1, 1] in float32 on the images' device."""
        raise NotImplementedError

    def weight(self, sigma: Tensor) -> Tensor:
        """Return λ(σ), of sigma's shape."""
        raise NotImplementedError

    def __call__(
        self,
        net: Callable[..., Tensor],
        images: Tensor,
        labels: Tensor | None = None,
        augment_pipe: AugmentPipe | None = None,
        *,
        sigma: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return λ(σ)·(D(y + n; σ, labels, augment_labels) − y)² of the shape of images [N, C, H, W].

        Raises ValueError when a given `sigma` is not [N, 1, 1, 1] or `noise` does not have the images' shape.
        """
        if sigma is None:
            sigma = self.draw_sigma(images)
        elif sigma.shape != (images.shape[0], 1, 1, 1):
            raise ValueError(f"sigma must be [{images.shape[0]}, 1, 1, 1], but its shape is {list(sigma.shape)}")
        options: dict[str, Any] = {}
        y = images
        if augment_pipe is not None:
            y, options["augment_labels"] = augment_pipe(images)
        if noise is None:
            noise = torch.randn_like(y)
        elif noise.shape != y.shape:
            raise ValueError(f"noise must be {list(y.shape)} as the images, but its shape is {list(noise.shape)}")
        denoised = net(y + sigma * noise, sigma, labels, **options)
        return self.weight(sigma) * (denoised - y) ** 2


class EDMLoss(_Loss):
    """ln σ ~ N(P_mean, P_std²), λ = (σ² + σ_data²)/(σ·σ_data)²."""

    def __init__(self, P_mean: float = -1.2, P_std: float = 1.2, sigma_data: float = 0.5) -> None:
        self.P_mean = P_mean
        self.P_std = P_std
        self.sigma_data = sigma_data

    def draw_sigma(self, images: Tensor) -> Tensor:
        """Draw σ = exp(P_mean + P_std·N(0, 1)), [N, 1, 1, 1]."""
        normal = torch.randn([images.shape[0], 1, 1, 1], device=images.device)
        return (normal * self.P_std + self.P_mean).exp()

    def weight(self, sigma: Tensor) -> Tensor:
        """Return (σ² + σ_data²)/(σ·σ_data)²."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


class VPLoss(_Loss):
    """σ = σ(t) with t = 1 + U(0, 1)·(epsilon_t − 1), σ(t) = √(exp(½β_d t² + β_min t) − 1); λ = 1/σ²."""

    def __init__(self, beta_d: float = 19.9, beta_min: float = 0.1, epsilon_t: float = 1e-5) -> None:
        self.beta_d = beta_d
        self.beta_min = beta_min
        self.epsilon_t = epsilon_t

    def sigma(self, t: float | Tensor) -> Tensor:
        """σ(t), evaluated as written, as in VPPrecond."""
        t = torch.as_tensor(t)
        return ((0.5 * self.beta_d * t**2 + self.beta_min * t).exp() - 1).sqrt()

    def draw_sigma(self, images: Tensor) -> Tensor:
        """Draw σ(1 + U·(epsilon_t − 1)), [N, 1, 1, 1]."""
        uniform = torch.rand([images.shape[0], 1, 1, 1], device=images.device)
        return self.sigma(1 + uniform * (self.epsilon_t - 1))

    def weight(self, sigma: Tensor) -> Tensor:
        """Return 1/σ²."""
        return 1 / sigma**2


class VELoss(_Loss):
    """σ = sigma_min·(sigma_max/sigma_min)^U(0, 1), λ = 1/σ²."""

    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 100) -> None:
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def draw_sigma(self, images: Tensor) -> Tensor:
        """Draw σ, uniform in ln σ between sigma_min and sigma_max, [N, 1, 1, 1]."""
        uniform = torch.rand([images.shape[0], 1, 1, 1], device=images.device)
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** uniform

    def weight(self, sigma: Tensor) -> Tensor:
        """Return 1/σ²."""
        return 1 / sigma**2
