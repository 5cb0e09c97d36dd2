"""examples/dit.py: a transformer that the samplers have never heard of, sampled as the paper says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import with_weights
from tolerance import SAMPLER_FLOAT64, relative_error
from torch.nn import functional

import edm_fast
from edm_fast.reference.exact_denoisers import GaussianDenoiser
from edm_fast.reference.losses import EDMLoss
from edm_fast.samplers import edm_sampler
from edm_fast.training.data import split_digits

SHAPE = (2, 8, 8)
SEEDS = [5, 0, 2**40, 3, 11]
CLASSES = [0, 3, 1, 1, 2]
ROUNDING = 2 * torch.finfo(torch.float32).eps  # of the images that `sample` returns
ROWS = functional.one_hot(torch.tensor(CLASSES), 4)


@pytest.fixture(scope="module")
def dit(example):
    return example("dit")


def fresh(dit, **options):
    torch.manual_seed(0)
    return dit.Preconditioned(dit.DiT(2, 8, 4, width=16, depth=2), label_dim=4, **options).double().eval()


@pytest.fixture(scope="module")
def net(dit):
    """Random weights that all matter, in float64, so that rounding is far below the tolerances."""
    return with_weights(fresh(dit))


class Probe(torch.nn.Module):
    """F = 1, and remembers what it was given."""

    def forward(self, x_in, c_noise, class_labels):
        self.x_in, self.c_noise = x_in, c_noise
        return torch.ones_like(x_in)


@pytest.mark.parametrize("S_churn", [0, 10])
def test_sample_is_the_papers_algorithm(net, by_the_paper, S_churn):
    options = {"num_steps": 6, "S_churn": S_churn}
    ours = edm_fast.sample(net, SEEDS, CLASSES, shape=SHAPE, **options)
    truth = by_the_paper(net, SHAPE, SEEDS, ROWS, **options)
    assert relative_error(ours, truth) <= ROUNDING


def test_edm_sampler_is_the_papers_algorithm_in_float64(net, by_the_paper):
    ours = edm_sampler(net, edm_fast.randn(SHAPE, SEEDS, dtype=torch.float64), CLASSES, num_steps=6)
    assert relative_error(ours, by_the_paper(net, SHAPE, SEEDS, ROWS, num_steps=6)) <= SAMPLER_FLOAT64


def test_guidance_moves_away_from_no_label(net, by_the_paper):
    def guided(x, sigma, class_labels):
        without = net(x, sigma)
        return without + 2.5 * (net(x, sigma, class_labels) - without)

    ours = edm_fast.sample(net, SEEDS, CLASSES, num_steps=6, shape=SHAPE, guidance=2.5)
    truth = by_the_paper(guided, SHAPE, SEEDS, ROWS, num_steps=6)
    assert relative_error(ours, truth) <= ROUNDING


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_an_image_follows_from_its_seed_and_not_from_the_batch(net, batch):
    options = {"num_steps": 6, "shape": SHAPE, "S_churn": 10}
    whole = edm_fast.sample(net, SEEDS, CLASSES, **options)
    parts = edm_fast.sample(net, SEEDS, CLASSES, batch=batch, **options)
    assert relative_error(parts, whole) <= ROUNDING
    backwards = edm_fast.sample(net, SEEDS[::-1], CLASSES[::-1], batch=batch, **options)
    assert relative_error(backwards.flip(0), whole) <= ROUNDING
    assert relative_error(whole[2], whole[3]) > 0.1  # of one class: only the seeds differ


@pytest.mark.parametrize("sigma", [1e-2, 1e-4, 1e-6])
def test_the_denoiser_tends_to_the_identity_as_sigma_tends_to_0(net, sigma):
    x = edm_fast.randn(SHAPE, SEEDS, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(net(x, torch.tensor(sigma, dtype=torch.float64), ROWS), x) <= 2 * sigma


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_the_network_sees_and_is_asked_for_unit_variance(dit, sigma):
    probe, sigma_data = Probe(), 0.5
    net = dit.Preconditioned(probe, sigma_data=sigma_data)
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    c_out = float(net(0 * x, sigma))
    c_skip = float(net(x, sigma)) - c_out
    assert float(probe.x_in) ** 2 * (sigma**2 + sigma_data**2) == pytest.approx(1)
    # F's target is (y - c_skip (y + σ n))/c_out.
    assert ((1 - c_skip) * sigma_data) ** 2 + (c_skip * sigma) ** 2 == pytest.approx(c_out**2)
    assert probe.c_noise.tolist() == pytest.approx([np.log(sigma) / 4])


def test_untrained_it_is_the_ideal_denoiser_of_white_noise(dit):
    """adaLN-zero makes F = 0, and c_skip x is the best guess for y ~ N(0, σ_data²)."""
    net, ideal = fresh(dit), GaussianDenoiser(std=0.5, img_channels=2)
    ours = edm_fast.sample(net, SEEDS, CLASSES, num_steps=6, shape=SHAPE)
    assert relative_error(ours, edm_fast.sample(ideal, SEEDS, num_steps=6)) <= ROUNDING
    tokens = torch.randn(5, 16, 16, dtype=torch.float64)
    assert torch.equal(net.model.blocks[0](tokens, torch.randn(5, 1, 16, dtype=torch.float64)), tokens)


@pytest.mark.parametrize("depth", [0, 2])
def test_a_patch_hears_of_the_others_through_the_blocks_alone(dit, depth):
    model = with_weights(dit.DiT(2, 8, width=16, depth=depth).double())
    x_in = torch.zeros(1, *SHAPE, dtype=torch.float64)
    changed = x_in.clone()
    changed[0, 1, 2, 5] = 1
    c_noise = torch.zeros(1)
    with torch.no_grad():
        difference = (model(changed, c_noise) - model(x_in, c_noise)).abs()
    assert bool((difference[..., 2:4, 4:6] > 1e-3).any())
    difference[..., 2:4, 4:6] = 0
    assert bool((difference > 0).any()) == (depth > 0)


def test_labels_and_noise_levels_may_be_one_for_all_or_one_each(net):
    x = edm_fast.randn(SHAPE, SEEDS, dtype=torch.float64)
    sigmas = torch.tensor([0.01, 0.1, 1.0, 10.0, 80.0], dtype=torch.float64)
    with torch.no_grad():
        together = net(x, sigmas, ROWS)
        singly = [net(x[i : i + 1], sigmas[i], ROWS[i : i + 1]) for i in range(5)]
        assert relative_error(together, torch.cat(singly)) <= 1e-12
        assert relative_error(net(x, 1.0, ROWS[:1]), net(x, 1.0, ROWS[:1].expand(5, 4))) <= 1e-12
        assert relative_error(net(x, 1.0), net(x, 1.0, torch.zeros(5, 4))) <= 1e-12
        assert relative_error(net(x, 1.0), net(x, 1.0, ROWS)) > 0.01


def test_weights_in_float32_serve_a_state_in_float64(dit):
    net = with_weights(fresh(dit)).float()
    for dtype in (torch.float32, torch.float64):
        assert net(torch.zeros(1, *SHAPE, dtype=dtype), torch.tensor(2.0, dtype=torch.float64), ROWS[:1]).dtype == dtype


def test_training_lowers_the_loss_on_digits_it_has_not_seen(dit):
    (data, labels), (unseen, unseen_labels) = split_digits()
    rows, unseen_rows = (functional.one_hot(ids, 10).float() for ids in (labels, unseen_labels))

    def loss(net):
        torch.manual_seed(1)
        with torch.no_grad():
            return float(EDMLoss()(net, unseen, unseen_rows).mean())

    torch.manual_seed(0)
    net = dit.Preconditioned(dit.DiT(1, 8, 10, width=32, depth=1), label_dim=10)
    before = loss(net)
    dit.train(net, data, rows, steps=40, batch=32)
    assert loss(net) < 0.75 * before
    assert not net.training


def test_it_runs_from_another_folder(run_elsewhere, tmp_path):
    printed = run_elsewhere("dit", "--outdir", "a/b", "--seeds", "0-11", "--steps", 2, "--train-steps", 2)
    path = tmp_path / "a" / "b" / "dit.png"
    assert "12 images" in printed
    pixels = np.asarray(Image.open(path))
    assert pixels.shape == (2 * 36 + 4, 10 * 36 + 4)
    assert len(np.unique(pixels[:36])) > 10
    assert len(np.unique(pixels[36:, 2 * 36 + 4 :])) == 1  # the second row holds two images
