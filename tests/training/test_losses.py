"""The losses: their noise distributions, their weights, and what they pass to the network."""

from __future__ import annotations

import math

import pytest
import torch

from edm_fast.networks import VPPrecond
from edm_fast.reference import losses as reference
from edm_fast.reference.exact_denoisers import GaussianDenoiser
from edm_fast.reference.losses import EDMLoss, VELoss, VPLoss
from edm_fast.training import losses as fused

NAMES = ["EDMLoss", "VPLoss", "VELoss"]
LOSSES = [pytest.param(getattr(module, name), id=f"{module.__name__.split('.')[1]}-{name}")
          for module in (reference, fused) for name in NAMES]  # fmt: skip
IMAGES = torch.linspace(-1, 1, 4 * 2 * 3 * 3).reshape(4, 2, 3, 3)


class Recorder:
    """A network that keeps its arguments and returns a constant."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __call__(self, x, sigma, class_labels=None, **kwargs):
        self.calls.append((x, sigma, class_labels, kwargs))
        return torch.full_like(x, 0.25)


@pytest.mark.parametrize("module", [reference, fused], ids=["reference", "training"])
@pytest.mark.parametrize(
    ("name", "options", "weight"),
    [
        ("EDMLoss", {}, lambda s: (s**2 + 0.25) / (0.5 * s) ** 2),
        ("EDMLoss", {"sigma_data": 0.8}, lambda s: (s**2 + 0.64) / (0.8 * s) ** 2),
        ("VPLoss", {}, lambda s: 1 / s**2),
        ("VELoss", {}, lambda s: 1 / s**2),
    ],
)
def test_loss_is_the_weighted_squared_error_of_the_noisy_image(module, name, options, weight):
    loss = getattr(module, name)(**options)
    sigma = torch.tensor([0.1, 0.5, 2.0, 30.0]).reshape(4, 1, 1, 1)
    noise = torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.eye(4)
    net = Recorder()
    found = loss(net, IMAGES, labels, sigma=sigma, noise=noise)
    ((x, given_sigma, given_labels, kwargs),) = net.calls
    torch.testing.assert_close(x, IMAGES + sigma * noise)
    assert torch.equal(given_sigma, sigma)
    assert given_labels is labels
    assert kwargs == {}
    for index in range(4):
        factor = weight(float(sigma[index]))
        torch.testing.assert_close(found[index], factor * (0.25 - IMAGES[index]) ** 2)


@pytest.mark.parametrize("cls", LOSSES)
def test_augmentation_replaces_the_target_and_labels_the_network(cls):
    net = Recorder()
    augment_labels = torch.ones(4, 9)
    sigma, noise = torch.ones(4, 1, 1, 1), torch.zeros_like(IMAGES)
    found = cls()(net, IMAGES, None, lambda images: (-images, augment_labels), sigma=sigma, noise=noise)
    ((x, _, _, kwargs),) = net.calls
    assert torch.equal(x, -IMAGES)
    assert kwargs["augment_labels"] is augment_labels
    torch.testing.assert_close(found, cls().weight(sigma) * (0.25 + IMAGES) ** 2)


def drawn(loss, count: int = 20_000) -> torch.Tensor:
    torch.manual_seed(0)
    return loss.draw_sigma(torch.zeros(count, 1, 1, 1)).double().flatten()


def test_edm_noise_is_log_normal():
    logs = drawn(EDMLoss(P_mean=-0.4, P_std=0.9)).log()
    assert float(logs.mean()) == pytest.approx(-0.4, abs=5 * 0.9 / math.sqrt(20_000))
    assert float(logs.std()) == pytest.approx(0.9, abs=5 * 0.9 / math.sqrt(40_000))
    default = drawn(EDMLoss()).log()
    assert float(default.mean()) == pytest.approx(-1.2, abs=0.05)
    assert float(default.std()) == pytest.approx(1.2, abs=0.05)


def test_ve_noise_is_uniform_in_its_logarithm():
    place = (drawn(VELoss()) / 0.02).log() / math.log(100 / 0.02)
    assert 0 <= float(place.min()) < 1e-3
    assert 1 - 1e-3 < float(place.max()) <= 1 + 1e-6
    assert float(place.mean()) == pytest.approx(0.5, abs=5 / math.sqrt(12 * 20_000))
    assert float(place.var()) == pytest.approx(1 / 12, rel=0.05)


def test_vp_noise_is_uniform_in_time():
    net = VPPrecond(8, 1, model_channels=16, channel_mult=[1], num_blocks=0)
    t = net.sigma_inv(drawn(VPLoss()))
    assert 0 <= float(t.min()) < 2e-3
    assert 1 - 1e-3 < float(t.max()) <= 1 + 1e-6
    assert float(t.mean()) == pytest.approx(0.5, abs=5 / math.sqrt(12 * 20_000))
    assert float(t.var()) == pytest.approx(1 / 12, rel=0.05)


@pytest.mark.parametrize("cls", LOSSES)
def test_exact_denoiser_reaches_the_posterior_variance(cls):
    """E|D − y|² = s²σ²/(s² + σ²) for y ~ N(0, s²), which no denoiser can be below."""
    loss, std, count = cls(), 0.7, 40_000
    generator = torch.Generator().manual_seed(1)
    net = GaussianDenoiser(0.0, std, img_resolution=1)
    torch.manual_seed(2)
    for level in (0.1, 1.0, 5.0):
        sigma = torch.full([count, 1, 1, 1], level)
        values = loss(net, net.sample(count, generator).float(), sigma=sigma) / loss.weight(sigma)
        wanted = std**2 * level**2 / (std**2 + level**2)
        assert abs(float(values.mean()) - wanted) < 5 * float(values.std()) / math.sqrt(count)


@pytest.mark.parametrize("cls", LOSSES)
def test_draws_follow_the_seed_and_differ_between_samples(cls):
    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        net = Recorder()
        cls()(net, IMAGES)
        return net.calls[0][0]

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    net = Recorder()
    cls()(net, IMAGES)
    assert net.calls[0][1].shape == (4, 1, 1, 1)
    assert net.calls[0][1].unique().numel() == 4


def test_given_sigma_and_noise_of_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"sigma must be \[4, 1, 1, 1\].*\[4\]"):
        EDMLoss()(Recorder(), IMAGES, sigma=torch.ones(4))
    with pytest.raises(ValueError, match=r"noise must be \[4, 2, 3, 3\].*\[1, 2, 3, 3\]"):
        EDMLoss()(Recorder(), IMAGES, noise=torch.ones(1, 2, 3, 3))
