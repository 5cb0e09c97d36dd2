"""The exact denoisers are the posterior mean of their distribution, sample by sample."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from edm_fast.reference.exact_denoisers import DatasetDenoiser, GaussianDenoiser, GaussianMixtureDenoiser


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64 that depend on the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian() -> GaussianDenoiser:
    return GaussianDenoiser(rand(2, 3, 3, seed=1), 0.2 + rand(2, 3, 3, seed=2).abs(), img_channels=2, img_resolution=3)


def mixture() -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(rand(3, 2, 3, 3, seed=3), [0.3, 0.8, 0.05], [1.0, 2.0, 0.5])


def dataset() -> DatasetDenoiser:
    return DatasetDenoiser(rand(7, 2, 3, 3, seed=4))


def log_density_gaussian(net: GaussianDenoiser, x: Tensor, sigma: float) -> Tensor:
    return torch.distributions.Normal(net.mean, (net.std**2 + sigma**2).sqrt()).log_prob(x).sum((1, 2, 3))


def log_density_mixture(net: GaussianMixtureDenoiser, x: Tensor, sigma: float) -> Tensor:
    parts = []
    for mean, std, weight in zip(net.means, net.stds, net.weights, strict=True):
        normal = torch.distributions.Normal(mean, (std**2 + sigma**2).sqrt())
        parts.append(weight.log() + normal.log_prob(x).sum((1, 2, 3)))
    return torch.stack(parts).logsumexp(0)


def log_density_dataset(net: DatasetDenoiser, x: Tensor, sigma: float) -> Tensor:
    parts = [torch.distributions.Normal(y, sigma).log_prob(x).sum((1, 2, 3)) for y in net.images]
    return torch.stack(parts).logsumexp(0)


CASES = [
    pytest.param(gaussian, log_density_gaussian, id="gaussian"),
    pytest.param(mixture, log_density_mixture, id="mixture"),
    pytest.param(dataset, log_density_dataset, id="dataset"),
]
MAKERS = [pytest.param(case.values[0], id=case.id) for case in CASES]


@pytest.mark.parametrize(("make", "log_density"), CASES)
@pytest.mark.parametrize("sigma", [0.05, 0.7, 20.0])
def test_denoiser_is_tweedies_formula_of_the_score(make, log_density, sigma):
    net = make()
    x = (rand(4, 2, 3, 3) * (1 + sigma)).requires_grad_()
    (score,) = torch.autograd.grad(log_density(net, x, sigma).sum(), x)
    torch.testing.assert_close(net(x.detach(), sigma), x.detach() + sigma**2 * score)


@pytest.mark.parametrize("make", MAKERS)
def test_denoising_error_is_uncorrelated_with_its_input(make):
    """The posterior mean is the only function of x whose error is orthogonal to every function of x."""
    net = make()
    generator = torch.Generator().manual_seed(5)
    count, sigma = 20_000, 0.6
    y = net.sample(count, generator)
    x = y + sigma * torch.randn(y.shape, generator=generator, dtype=y.dtype)
    error = y - net(x, sigma)
    for probe in (torch.ones_like(x), x, x.sin(), (x**2).sum((1, 2, 3), keepdim=True).expand_as(x)):
        products = (error * probe).sum((1, 2, 3))
        assert abs(float(products.mean())) < 5 * float(products.std()) / math.sqrt(count)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_samples_result_does_not_depend_on_the_batch(make, dtype):
    net = make()
    x = rand(17, 2, 3, 3).to(dtype)
    sigma = torch.linspace(0.1, 5, 17, dtype=dtype)
    whole = net(x, sigma)
    assert whole.dtype == dtype
    for size in (1, 4, 5):
        parts = [net(a, b) for a, b in zip(x.split(size), sigma.split(size), strict=True)]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("make", MAKERS)
def test_sigma_may_be_a_number_a_scalar_or_one_per_sample(make):
    net = make()
    x = rand(3, 2, 3, 3)
    single = net(x, 0.5)
    assert torch.equal(net(x, torch.tensor(0.5)), single)
    assert torch.equal(net(x, torch.full([3], 0.5)), single)
    assert torch.equal(net(x, torch.full([3, 1, 1, 1], 0.5), None), single)
    with pytest.raises(ValueError, match="sigma must hold 1 or 3 values, but it holds 2"):
        net(x, torch.ones(2))


@pytest.mark.parametrize("make", MAKERS)
def test_a_number_is_not_rounded_on_its_way(make):
    x = rand(2, 2, 3, 3)
    assert float(torch.tensor(0.1)) != 0.1
    assert torch.equal(make()(x, 0.1), make()(x, torch.tensor(0.1, dtype=torch.float64)))


@pytest.mark.parametrize("make", MAKERS)
def test_denoisers_look_like_networks(make):
    net = make()
    assert (net.sigma_min, net.sigma_max, net.label_dim) == (0, math.inf, 0)
    assert (net.img_channels, net.img_resolution) == (2, 3)
    assert torch.equal(net.round_sigma(torch.tensor([0.3])), torch.tensor([0.3]))


def test_dataset_denoiser_is_stable_at_every_noise_level():
    net = dataset()
    assert torch.equal(net(net.images + 1e-9, 1e-8), net.images)
    far = net(rand(2, 2, 3, 3) * 1e6, 1e6)
    assert bool(far.isfinite().all())
    near_mean = net(torch.zeros(1, 2, 3, 3, dtype=torch.float64), 1e6)
    torch.testing.assert_close(near_mean[0], net.images.mean(0))


def test_mixture_of_one_component_is_a_gaussian():
    mean = rand(2, 3, 3)
    one = GaussianMixtureDenoiser(mean[None], [0.4])
    x = rand(5, 2, 3, 3, seed=9)
    torch.testing.assert_close(one(x, 0.9), GaussianDenoiser(mean, 0.4)(x, 0.9))


def test_samples_have_the_moments_of_the_distribution():
    net, count = mixture(), 50_000
    y = net.sample(count, torch.Generator().manual_seed(0)).flatten(1)
    weights, means = net.weights, net.means.flatten(1)
    mean = (weights[:, None] * means).sum(0)
    variance = (weights[:, None] * (net.stds[:, None] ** 2 + means**2)).sum(0) - mean**2
    assert float(((y.mean(0) - mean).abs() / (variance / count).sqrt()).max()) < 5
    torch.testing.assert_close(y.var(0), variance, rtol=0.05, atol=0)
    net = gaussian()
    y = net.sample(count, torch.Generator().manual_seed(0))
    assert float(((y.mean(0) - net.mean).abs() * math.sqrt(count) / net.std).max()) < 5
    torch.testing.assert_close(y.std(0), net.std, rtol=0.03, atol=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianDenoiser(0.0, -1.0), "std must not be negative.*-1"),
        (lambda: GaussianMixtureDenoiser(torch.zeros(2, 3), [1, 1]), r"means must be.*\[2, 3\]"),
        (lambda: GaussianMixtureDenoiser(torch.zeros(2, 1, 3, 3), [1.0]), r"stds must be \[2\].*\[1\]"),
        (lambda: GaussianMixtureDenoiser(torch.zeros(2, 1, 3, 3), [1.0, 1], [1.0]), r"weights must be \[2\]"),
        (lambda: GaussianMixtureDenoiser(torch.zeros(1, 1, 3, 3), [-1.0]), "stds must not be negative"),
        (lambda: GaussianMixtureDenoiser(torch.zeros(1, 1, 3, 3), [1.0], [0.0]), "weights must be positive"),
        (lambda: DatasetDenoiser(torch.zeros(0, 1, 3, 3)), r"images must be.*\[0, 1, 3, 3\]"),
    ],
)
def test_wrong_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
