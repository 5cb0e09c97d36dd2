"""Noise augmentation and its loss in plain PyTorch: the oracle for `noise_augment` and `denoising_loss`."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from edm_fast.reference.randn import noise_words, randn

DOMAIN_TRAINING = 3
DOMAIN_NOISE_LEVEL = 4


class LevelRule(Protocol):
    """What `edm_fast.ops.noise_augment.LevelRule` holds; read-only here."""

    @property
    def source(self) -> str: ...
    @property
    def a(self) -> float: ...
    @property
    def b(self) -> float: ...
    @property
    def c(self) -> float: ...
    @property
    def preconditioning(self) -> str: ...
    @property
    def sigma_data(self) -> float: ...
    @property
    def beta_d(self) -> float: ...
    @property
    def beta_min(self) -> float: ...
    @property
    def levels(self) -> float: ...
    @property
    def weight_sigma_data(self) -> float: ...


def drawn_sigma(rule: LevelRule, seeds: Tensor, draw: int) -> Tensor:
    """σ float32 [N] for int64 seeds [N]."""
    z = randn([1], seeds, draw, DOMAIN_NOISE_LEVEL)[:, 0].double()
    u = (noise_words(seeds, 1, draw, DOMAIN_NOISE_LEVEL)[0][:, 0].double() + 0.5) * 2.0**-32
    if rule.source == "log_normal":
        sigma = (rule.a + rule.b * z).exp()
    elif rule.source == "log_uniform":
        sigma = (rule.a + rule.b * u).exp()
    elif rule.source == "uniform":
        sigma = rule.a + rule.b * u
    else:
        t = 1 + u * (rule.c - 1)
        sigma = (0.5 * rule.a * t * t + rule.b * t).expm1().sqrt()
    return sigma.float()


def level_rows(rule: LevelRule, sigma: Tensor) -> Tensor:
    """Rows float32 [N, 7] for σ float32 [N]: σ, c_in, c_noise, weight, c_skip - 1, c_skip σ, c_out."""
    s = sigma.double()
    c_skip_minus_1, c_out, c_in, c_noise = -torch.ones_like(s), torch.ones_like(s), torch.ones_like(s), s
    if rule.preconditioning == "edm":
        total = s**2 + rule.sigma_data**2
        c_skip_minus_1 = -(s**2) / total
        c_out = s * rule.sigma_data / total.sqrt()
        c_in = 1 / total.sqrt()
        c_noise = s.log() / 4
    elif rule.preconditioning == "vp":
        # In float32 as written, as VPPrecond has it.
        root = (rule.beta_min**2 + 2 * rule.beta_d * (1 + sigma**2).log()).sqrt()
        c_skip_minus_1 = torch.zeros_like(s)
        c_out = -s
        c_in = 1 / (s**2 + 1).sqrt()
        c_noise = (rule.levels - 1) * ((root - rule.beta_min) / rule.beta_d).double()
    elif rule.preconditioning == "ve":
        c_skip_minus_1 = torch.zeros_like(s)
        c_out = s
        c_noise = (0.5 * s).log()
    data = rule.weight_sigma_data
    weight = (s**2 + data**2) / (s * data) ** 2 if data else 1 / s**2
    return torch.stack([s, c_in, c_noise, weight, c_skip_minus_1, (c_skip_minus_1 + 1) * s, c_out], dim=1).float()


def training_noise(images: Tensor, seeds: Tensor | None, draw: int, noise: Tensor | None) -> Tensor:
    """The given noise, or that of (seed, draw, element)."""
    if noise is not None:
        return noise
    assert seeds is not None
    return randn(images.shape[1:], seeds, draw, DOMAIN_TRAINING)


def noise_augment(images: Tensor, rows: Tensor, seeds: Tensor | None, draw: int, noise: Tensor | None) -> Tensor:
    """c_in·(y + σ·n), of the images' dtype but float32 at least."""
    dtype = torch.promote_types(images.dtype, torch.float32)
    sigma, c_in = (rows[:, i].to(dtype).reshape(-1, *[1] * (images.dim() - 1)) for i in (0, 1))
    return c_in * (images.to(dtype) + sigma * training_noise(images, seeds, draw, noise).to(dtype))


def denoising_error(
    model_output: Tensor, images: Tensor, rows: Tensor, seeds: Tensor | None, draw: int, noise: Tensor | None
) -> Tensor:
    """w·(D - y)² for every element, of the output's dtype but float32 at least."""
    dtype = torch.promote_types(model_output.dtype, torch.float32)
    columns = (rows[:, i].to(dtype).reshape(-1, *[1] * (images.dim() - 1)) for i in (3, 4, 5, 6))
    weight, of_image, of_noise, of_output = columns
    n = training_noise(images, seeds, draw, noise).to(dtype)
    return weight * (of_image * images.to(dtype) + of_noise * n + of_output * model_output.to(dtype)) ** 2
