"""What is sampled to measure errors against cost: mixtures of Gaussians, whose denoiser is exact, and the digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from quality_methods import Problem

import edm_fast
from edm_fast.reference.exact_denoisers import GaussianMixtureDenoiser


@dataclass(frozen=True)
class Case:
    """`problem(n)` is the case with the latents of the seeds 0 … n-1; `samples` and `quick` are such n."""

    title: str
    about: str
    problem: Callable[[int], Problem]
    samples: int
    quick: int


def plane() -> GaussianMixtureDenoiser:
    """Five modes in two dimensions: three far apart, and two that only noise levels below 0.1 tell apart."""
    means = torch.tensor([[-0.8, -0.4], [0.1, 0.8], [0.8, -0.7], [0.55, 0.35], [0.68, 0.42]])
    return GaussianMixtureDenoiser(means.reshape(5, 2, 1, 1), [0.1, 0.08, 0.12, 0.03, 0.03], [3, 2, 3, 1, 1])


def colour_images() -> GaussianMixtureDenoiser:
    """Ten modes in 3×32×32 dimensions: smooth images of root mean square 0.5 with white noise of 0.02 to 0.2."""
    coarse = edm_fast.randn((3, 4, 4), seeds=range(1000, 1010), dtype=torch.float64)
    means = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
    means = 0.5 * means / means.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return GaussianMixtureDenoiser(means, torch.linspace(0.02, 0.2, 10))


def _latents(shape: tuple[int, int, int], samples: int) -> torch.Tensor:
    return edm_fast.randn(shape, seeds=range(samples), dtype=torch.float64)


def _digits(samples: int) -> Problem:
    labels = torch.nn.functional.one_hot(torch.arange(samples) % 10, 10).float()
    return Problem(edm_fast.prepare(edm_fast.load()), _latents((1, 8, 8), samples), labels)


CASES = {
    "plane": Case(
        "Gaussian mixture, 2 dimensions",
        "five modes, three far apart and two close; the denoiser is exact",
        lambda samples: Problem(plane(), _latents((2, 1, 1), samples)),
        samples=1024,
        quick=64,
    ),
    "colour": Case(
        "Gaussian mixture, 3×32×32",
        "ten smooth images with white noise of 0.02 to 0.2; the denoiser is exact",
        lambda samples: Problem(colour_images(), _latents((3, 32, 32), samples)),
        samples=16,
        quick=2,
    ),
    "digits": Case(
        "Shipped digits model",
        "two images of each class; the network computes in float32",
        _digits,
        samples=20,
        quick=4,
    ),
}
