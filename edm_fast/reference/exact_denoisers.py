"""Denoisers known in closed form: D(x; σ) = E[y | y + σ·n = x] for distributions of y that allow it.

They have a network's interface (call, sigma_min, sigma_max, img_channels, img_resolution, label_dim, round_sigma) and
no error of their own, which is what makes them useful for testing samplers. They compute in x's dtype, and a sample's
result does not depend on the other samples in the batch: all arithmetic is elementwise, and sums over pixels or
components are trees of elementwise additions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _tree_sum(values: Tensor) -> Tensor:
    """Sum over the last dimension by pairwise addition; the order depends on its length alone."""
    if values.shape[-1] == 0:
        return values.new_zeros(values.shape[:-1])
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        paired = values[..., :half] + values[..., half : 2 * half]
        values = torch.cat([paired, values[..., 2 * half :]], dim=-1)
    return values[..., 0]


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the last dimension, summed by `_tree_sum`."""
    exponentials = (logits - logits.amax(dim=-1, keepdim=True)).exp()
    return exponentials / _tree_sum(exponentials)[..., None]


class ExactDenoiser:
    """Base of the exact denoisers: a network's attributes and the checks of its arguments. label_dim is 0."""

    sigma_min = 0.0
    sigma_max = math.inf
    label_dim = 0

    def __init__(self, img_channels: int, img_resolution: int) -> None:
        self.img_channels = img_channels
        self.img_resolution = img_resolution

    def round_sigma(self, sigma: float | list[float] | Tensor) -> Tensor:
        """Return sigma as a tensor: every noise level is exact."""
        return torch.as_tensor(sigma)

    def __call__(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """Return D(x; σ) of x's shape and dtype.

        Args:
            x: noisy images [N, C, H, W], floating point.
            sigma: noise level ≥ 0, one number or N of them in any shape.
            class_labels: ignored; the distribution has no classes.

        Raises ValueError for a wrong number of noise levels.
        """
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1)
        if sigma.numel() not in (1, x.shape[0]):
            raise ValueError(f"sigma must hold 1 or {x.shape[0]} values, but it holds {sigma.numel()}")
        return self.denoise(x, sigma)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D for x [N, C, H, W] and sigma [N] or [1] of x's dtype."""
        raise NotImplementedError


class GaussianDenoiser(ExactDenoiser):
    """y ~ N(mean, std²) independently in every pixel: D = (std²·x + σ²·mean)/(std² + σ²).

    `mean` and `std` are numbers or tensors that broadcast to [C, H, W]; std may be 0, where σ must not be.
    """

    def __init__(
        self, mean: float | Tensor = 0.0, std: float | Tensor = 1.0, img_channels: int = 1, img_resolution: int = 8
    ) -> None:
        super().__init__(img_channels, img_resolution)
        self.mean = torch.as_tensor(mean, dtype=torch.float64)
        self.std = torch.as_tensor(std, dtype=torch.float64)
        if bool((self.std < 0).any()):
            raise ValueError(f"std must not be negative, but its smallest value is {float(self.std.min())}")

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D for x [N, C, H, W] and sigma [N] or [1] of x's dtype."""
        mean, std = self.mean.to(x), self.std.to(x)
        noise_variance = sigma.reshape(-1, 1, 1, 1).square()
        return (std.square() * x + noise_variance * mean) / (std.square() + noise_variance)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw y exactly: float64 [n, C, H, W]."""
        shape = [n, self.img_channels, self.img_resolution, self.img_resolution]
        return self.mean + self.std * torch.randn(shape, generator=generator, dtype=torch.float64)


class GaussianMixtureDenoiser(ExactDenoiser):
    """y ~ Σ_k w_k N(m_k, s_k²·I): D = Σ_k r_k(x)·(s_k²·x + σ²·m_k)/(s_k² + σ²).

    r_k ∝ w_k·N(x; m_k, (s_k² + σ²)·I) is the probability that x came from component k.

    Args:
        means: [K, C, H, W].
        stds: [K], not negative; 0 makes a component a single image.
        weights: [K], positive, normalised to sum 1; None makes them equal.

    Raises ValueError for wrong shapes, negative stds or non-positive weights.
    """

    def __init__(
        self,
        means: Tensor,
        stds: Tensor | Sequence[float],
        weights: Tensor | Sequence[float] | None = None,
    ) -> None:
        means = torch.as_tensor(means, dtype=torch.float64)
        if means.ndim != 4 or means.shape[0] == 0:
            raise ValueError(f"means must be [K, C, H, W] with K at least 1, but the shape is {list(means.shape)}")
        super().__init__(means.shape[1], means.shape[3])
        count = means.shape[0]
        self.means = means
        self.stds = torch.as_tensor(stds, dtype=torch.float64)
        self.weights = torch.ones(count) if weights is None else torch.as_tensor(weights)
        for name, tensor in (("stds", self.stds), ("weights", self.weights)):
            if tensor.shape != (count,):
                raise ValueError(f"{name} must be [{count}], as means has it, but the shape is {list(tensor.shape)}")
        if bool((self.stds < 0).any()) or not bool((self.weights > 0).all()):
            raise ValueError(
                f"stds must not be negative and weights must be positive, but they are {stds} and {weights}"
            )
        self.weights = self.weights.to(torch.float64) / self.weights.to(torch.float64).sum()

    def responsibilities(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return r [N, K] for x [N, C, H, W] and sigma [N] or [1] of x's dtype."""
        variances = self.stds.to(x).square() + sigma.reshape(-1, 1).square()
        columns = [_tree_sum((x - mean).square().flatten(1)) for mean in self.means.to(x)]
        distances = torch.stack(columns, dim=1)
        dimension = self.means[0].numel()
        return _softmax(self.weights.to(x).log() - 0.5 * dimension * variances.log() - distances / (2 * variances))

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D for x [N, C, H, W] and sigma [N] or [1] of x's dtype."""
        shares = self.responsibilities(x, sigma)
        noise_variance = sigma.reshape(-1, 1, 1, 1).square()
        denoised = torch.zeros_like(x)
        for k, (mean, std) in enumerate(zip(self.means.to(x), self.stds.to(x), strict=True)):
            expected = (std.square() * x + noise_variance * mean) / (std.square() + noise_variance)
            denoised = denoised + shares[:, k, None, None, None] * expected
        return denoised

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw y exactly: float64 [n, C, H, W]."""
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn([n, *self.means.shape[1:]], generator=generator, dtype=torch.float64)
        return self.means[chosen] + self.stds[chosen, None, None, None] * noise


class DatasetDenoiser(ExactDenoiser):
    """y is one of M images with equal probability, the paper's ideal denoiser (its equation 57).

    D = Σ_i w_i·y_i with w = softmax_i(−|x − y_i|²/(2σ²)). The work is done a sample at a time, in memory of M images.

    Args:
        images: [M, C, H, W], M at least 1.

    Raises ValueError for another shape.
    """

    def __init__(self, images: Tensor) -> None:
        images = torch.as_tensor(images)
        if images.ndim != 4 or images.shape[0] == 0:
            raise ValueError(f"images must be [M, C, H, W] with M at least 1, but the shape is {list(images.shape)}")
        super().__init__(images.shape[1], images.shape[3])
        self.images = images

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D for x [N, C, H, W] and sigma [N] or [1] of x's dtype; σ > 0."""
        images = self.images.to(x)
        denoised = torch.empty_like(x)
        for index in range(x.shape[0]):
            distances = _tree_sum((x[index] - images).square().flatten(1))
            variance = sigma[index if sigma.numel() > 1 else 0].square()
            weights = _softmax(-distances / (2 * variance))
            denoised[index] = _tree_sum((weights[:, None, None, None] * images).movedim(0, -1))
        return denoised

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw y exactly: [n, C, H, W] in the dtype of the images."""
        return self.images[torch.randint(self.images.shape[0], [n], generator=generator)]
