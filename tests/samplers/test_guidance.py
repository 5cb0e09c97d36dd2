"""Guidance against the equation in a plain denoiser; the interval; what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tiny_networks import tiny
from tolerance import SAMPLER_FLOAT32, SAMPLER_FLOAT64, assert_same_bits, relative_error

import edm_fast
from edm_fast.plan import prepare
from edm_fast.reference import samplers as reference
from edm_fast.reference.exact_denoisers import GaussianDenoiser
from edm_fast.samplers import edm_sampler
from edm_fast.samplers.edm import edm_table

SEEDS = [3, -8, 2**50]
LABELS = [0, 3, 1]
INTERVAL = (0.5, 20.0)


class Counting:
    """A denoiser that remembers the noise levels it was asked for."""

    def __init__(self, std):
        self.denoiser = GaussianDenoiser(std=std, img_channels=3, img_resolution=8)
        self.img_channels, self.img_resolution = 3, 8
        self.sigmas = []

    def __call__(self, x, sigma, class_labels=None):
        self.sigmas.append(float(sigma))
        return self.denoiser(x, sigma)


class Guided:
    """D_g + w·(D − D_g) as a network of its own."""

    def __init__(self, net, gnet, weight, interval=(0, torch.inf), labels=None, guide_labels=None):
        self.net, self.gnet, self.weight, self.interval = net, gnet, weight, interval
        self.labels, self.guide_labels = labels, guide_labels
        self.img_channels, self.img_resolution = net.img_channels, net.img_resolution
        self.sigma_min, self.sigma_max = getattr(net, "sigma_min", 0), getattr(net, "sigma_max", torch.inf)
        self.round_sigma = getattr(net, "round_sigma", torch.as_tensor)

    def __call__(self, x, sigma, class_labels=None, **options):
        denoised = self.net(x, sigma, self.labels).double()
        if not self.interval[0] < float(sigma) <= self.interval[1]:
            return denoised
        guide = self.gnet(x, sigma, self.guide_labels).double()
        return guide + self.weight * (denoised - guide)


def expected(net, **options):
    """The reference sampler with the noise of the seeds."""
    shape = (net.img_channels, net.img_resolution, net.img_resolution)
    draws = itertools.count(1)
    latents = edm_fast.randn(shape, SEEDS, dtype=torch.float64)
    noise = lambda x: edm_fast.randn(shape, SEEDS, next(draws), dtype=x.dtype)  # noqa: E731
    with torch.no_grad():
        return reference.edm_sampler(net, latents, randn_like=noise, **options)


@pytest.mark.parametrize("interval", [(0, torch.inf), INTERVAL], ids=["everywhere", "interval"])
@pytest.mark.parametrize("S_churn", [0, 5])
def test_a_second_denoiser(interval, S_churn):
    net, gnet = Counting(0.5), Counting(0.8)
    options = {"num_steps": 9, "S_churn": S_churn}
    ours = edm_fast.sample(net, SEEDS, guidance=2.5, gnet=gnet, guidance_interval=interval, **options)
    truth = expected(Guided(Counting(0.5), Counting(0.8), 2.5, interval), **options)
    assert relative_error(ours, truth.float()) <= 1e-6
    plain = edm_fast.sample(net, SEEDS, **options)
    assert relative_error(plain, truth.float()) > 0.01


def test_edm_sampler_in_float64():
    net, gnet = Counting(0.5), Counting(0.8)
    latents = edm_fast.randn((3, 8, 8), SEEDS, dtype=torch.float64)
    ours = edm_sampler(net, latents, num_steps=7, guidance=-0.5, gnet=gnet, guidance_interval=INTERVAL)
    truth = reference.edm_sampler(Guided(net, gnet, -0.5, INTERVAL), latents, num_steps=7)
    assert relative_error(ours, truth) <= SAMPLER_FLOAT64


@pytest.mark.parametrize("prepared", [False, True], ids=["network", "prepared"])
def test_classifier_free(prepared):
    net = tiny()
    rows = torch.nn.functional.one_hot(torch.tensor(LABELS), 10).float()
    truth = expected(Guided(net, net, 3.0, INTERVAL, rows, None), num_steps=6, S_churn=2)
    subject = prepare(net) if prepared else net
    ours = edm_fast.sample(subject, SEEDS, LABELS, 6, guidance=3, guidance_interval=INTERVAL, S_churn=2)
    assert relative_error(ours, truth.float()) <= 10 * SAMPLER_FLOAT32
    for batch in (1, 2):
        again = edm_fast.sample(subject, SEEDS, LABELS, 6, batch, guidance=3, guidance_interval=INTERVAL, S_churn=2)
        assert_same_bits(again, ours)


@pytest.mark.parametrize("changes", [{}, {"label_dim": 0}, {"sigma_data": 0.7}], ids=["alike", "unlabelled", "other"])
def test_a_second_network(changes):
    net, gnet = tiny(), tiny(seed=11, **changes)
    rows = torch.nn.functional.one_hot(torch.tensor(LABELS), 10).float()
    truth = expected(Guided(net, gnet, 1.5, INTERVAL, rows, rows if gnet.label_dim else None), num_steps=6)
    ours = edm_fast.sample(net, SEEDS, LABELS, 6, guidance=1.5, gnet=gnet, guidance_interval=INTERVAL)
    assert relative_error(ours, truth.float()) <= 10 * SAMPLER_FLOAT32


def test_outside_the_interval_the_second_network_is_not_evaluated():
    net, gnet = Counting(0.5), Counting(0.8)
    sigmas = edm_table(net, num_steps=18).sigma.tolist()
    low, high = sigmas[20], sigmas[4]
    edm_fast.sample(net, [1], num_steps=18, guidance=2, gnet=gnet, guidance_interval=(low, high))
    assert net.sigmas == sigmas
    assert gnet.sigmas == [sigma for sigma in sigmas if low < sigma <= high]
    assert low not in gnet.sigmas
    assert high in gnet.sigmas


def test_a_weight_of_one_is_no_guidance():
    net, gnet = Counting(0.5), Counting(0.8)
    guided = edm_fast.sample(net, SEEDS, num_steps=4, guidance=1, gnet=gnet)
    assert_same_bits(guided, edm_fast.sample(net, SEEDS, num_steps=4))
    assert not gnet.sigmas


def test_a_network_that_writes_to_its_input_does_not_reach_the_guide():
    class Writing(Counting):
        def __call__(self, x, sigma, class_labels=None):
            denoised = super().__call__(x, sigma)
            x.fill_(torch.nan)
            return denoised

    options = {"num_steps": 5, "guidance": 2}
    ours = edm_fast.sample(Writing(0.5), SEEDS, gnet=Writing(0.8), **options)
    assert_same_bits(ours, edm_fast.sample(Counting(0.5), SEEDS, gnet=Counting(0.8), **options))


def test_a_network_that_returns_the_same_memory_each_time():
    class Static(Counting):
        memory = torch.empty(3, 3, 8, 8, dtype=torch.float64)

        def __call__(self, x, sigma, class_labels=None):
            shift = 0 if class_labels is None else class_labels.mean()
            return self.memory.copy_(super().__call__(x, sigma) + shift)

    labels = torch.full([3, 4], 0.25)
    ours = edm_fast.sample(Static(0.5), SEEDS, labels, 5, guidance=3)
    truth = expected(Guided(Counting(0.5), Counting(0.5), 1), num_steps=5)
    # Guidance moves by w·shift what the labels alone would move by the shift.
    assert_same_bits(ours, edm_fast.sample(lambda x, s, c: Static(0.5)(x, s) + 0.75, SEEDS, labels, 5, shape=(3, 8, 8)))
    assert relative_error(ours, truth.float()) > 0.01


def test_rows_of_guidance_stay_finite_where_the_guide_has_no_part():
    table = edm_table(None, num_steps=2)
    ones = np.ones(table.evaluations)
    rows = table.rows(ones, ones, ones, guide=(ones, ones * np.inf, ones * np.nan))
    np.testing.assert_array_equal(rows, table.rows(ones, ones, ones))


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"guidance": "2"}, TypeError, "guidance"),
        ({"guidance": float("nan")}, ValueError, "guidance"),
        ({"guidance": float("inf")}, ValueError, "guidance"),
        ({"guidance": 2}, ValueError, "guidance"),
        ({"guidance": 2, "gnet": 7}, TypeError, "gnet"),
        ({"guidance": 2, "gnet": tiny(img_resolution=16)}, ValueError, "gnet"),
        ({"guidance": 2, "gnet": tiny(label_dim=3), "class_labels": LABELS}, ValueError, "gnet"),
        ({"guidance_interval": 3}, TypeError, "guidance_interval"),
        ({"guidance_interval": (2, 1)}, ValueError, "guidance_interval"),
        ({"guidance_interval": (-1, 1)}, ValueError, "guidance_interval"),
        ({"guidance_interval": (0, float("nan"))}, ValueError, "guidance_interval"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(arguments, error, name):
    with pytest.raises(error, match=f"^{name}: "):
        edm_fast.sample(tiny(), SEEDS, num_steps=2, **arguments)
