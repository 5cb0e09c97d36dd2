"""examples/foreign_unet.py: its wrapper agrees with diffusers about D(x; σ), the samplers with the paper about it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tolerance import SAMPLER_FLOAT64, relative_error
from torch.nn import functional

import edm_fast
from edm_fast import images
from edm_fast.reference.exact_denoisers import GaussianDenoiser
from edm_fast.samplers import edm_sampler

SHAPE = (3, 16, 16)
SEEDS = [5, 0, 2**40]
CLASSES = [9, 0, 3]
ROWS = functional.one_hot(torch.tensor(CLASSES), 10)
ROUNDING = 2 * torch.finfo(torch.float32).eps  # of the images that `sample` returns
PREDICTIONS = ["epsilon", "v_prediction"]
SCHEDULER = diffusers.DDPMScheduler(clip_sample=False)
ALPHA_BAR = SCHEDULER.alphas_cumprod


@pytest.fixture(scope="module")
def foreign_unet(example):
    return example("foreign_unet")


@pytest.fixture(scope="module")
def unet(foreign_unet):
    """In float64, so that rounding is far below the tolerances; a class says more than it does at first."""
    unet = foreign_unet.random_unet().double().eval()
    with torch.no_grad():
        unet.class_embedding.weight.mul_(5)
        unet.conv_out.weight.mul_(5)
    return unet


@pytest.fixture(params=PREDICTIONS)
def net(request, foreign_unet, unet):
    return foreign_unet.DDPMDenoiser(unet, ALPHA_BAR, request.param, label_dim=10).eval()


def ideal_unet(prediction_type, std):
    """The best prediction for images N(0, std²) in every pixel, at real timesteps: ln σ is linear between two."""
    levels = ((1 - ALPHA_BAR.double()) / ALPHA_BAR.double()).sqrt().log().numpy()

    def unet(sample, timestep, class_labels):
        sigma = torch.from_numpy(np.exp(np.interp(timestep.numpy(), np.arange(1000), levels))).reshape(-1, 1, 1, 1)
        alpha_bar = 1 / (1 + sigma**2)
        # Both predictions are linear in the images and the noise; E[images | sample] and E[noise | sample]:
        variance = alpha_bar * std**2 + 1 - alpha_bar
        clean, noise = alpha_bar.sqrt() * std**2 / variance * sample, (1 - alpha_bar).sqrt() / variance * sample
        v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean
        return SimpleNamespace(sample=noise if prediction_type == "epsilon" else v)

    unet.dtype = torch.float64
    return unet


@pytest.mark.parametrize("timestep", [0, 1, 500, 999])
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_it_denoises_as_diffusers_does_at_a_timestep_of_training(foreign_unet, unet, prediction_type, timestep):
    scheduler = diffusers.DDPMScheduler(clip_sample=False, prediction_type=prediction_type)
    net = foreign_unet.DDPMDenoiser(unet, scheduler.alphas_cumprod, prediction_type, label_dim=10)
    x_t = edm_fast.randn(SHAPE, SEEDS, dtype=torch.float64)
    alpha_bar = scheduler.alphas_cumprod[timestep].double()
    with torch.no_grad():
        output = unet(x_t, timestep, torch.tensor(CLASSES)).sample
        theirs = scheduler.step(output, timestep, x_t, generator=torch.manual_seed(0)).pred_original_sample
        ours = net(x_t / alpha_bar.sqrt(), ((1 - alpha_bar) / alpha_bar).sqrt(), ROWS)
    # diffusers computes with alphas_cumprod in float32: at σ = 0.01 their 1 - ᾱ has three digits fewer.
    assert relative_error(ours, theirs) <= 1e-5


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_an_ideal_predictor_becomes_the_ideal_denoiser(foreign_unet, prediction_type):
    net = foreign_unet.DDPMDenoiser(ideal_unet(prediction_type, std=0.5), ALPHA_BAR, prediction_type)
    truth = GaussianDenoiser(std=0.5, img_channels=3, img_resolution=16)
    x = 3 * edm_fast.randn(SHAPE, SEEDS, dtype=torch.float64)
    for sigma in (0.02, 0.3, 1.0, 7.0, 80.0):
        assert relative_error(net(x, sigma), truth(x, sigma)) <= 1e-10
    options = {"num_steps": 8, "sigma_min": net.sigma_min, "sigma_max": 80}
    expected = edm_fast.sample(truth, SEEDS, **options)
    assert relative_error(edm_fast.sample(net, SEEDS, shape=SHAPE, **options), expected) <= ROUNDING


def test_the_timestep_is_continuous_and_hits_those_of_training(foreign_unet, unet):
    net = foreign_unet.DDPMDenoiser(unet, ALPHA_BAR)
    levels = net.log_sigmas.exp()
    assert relative_error(net.timestep(levels), torch.arange(1000.0)) <= 1e-12
    assert relative_error(net.timestep((levels[:-1] * levels[1:]).sqrt()), torch.arange(999.0) + 0.5) <= 1e-12
    assert net.timestep(torch.tensor([net.sigma_min / 2, net.sigma_max * 2])).tolist() == [0, 999]
    assert (net.sigma_min, net.sigma_max) == pytest.approx((float(levels[0]), float(levels[-1])))


@pytest.mark.parametrize("sigma", [1e-3, 1e-6])
def test_the_denoiser_tends_to_the_identity_as_sigma_tends_to_0(net, sigma):
    x = edm_fast.randn(SHAPE, SEEDS, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(net(x, torch.tensor(sigma, dtype=torch.float64), ROWS), x) <= 5 * sigma


@pytest.mark.parametrize("S_churn", [0, 5])
def test_both_samplers_are_the_papers_algorithm(net, by_the_paper, S_churn):
    options = {"num_steps": 4, "S_churn": S_churn}
    truth = by_the_paper(net, SHAPE, SEEDS, ROWS, **options)
    ours = edm_fast.sample(net, SEEDS, CLASSES, shape=SHAPE, **options)
    assert relative_error(ours, truth) <= ROUNDING
    if not S_churn:
        latents = edm_fast.randn(SHAPE, SEEDS, dtype=torch.float64)
        assert relative_error(edm_sampler(net, latents, CLASSES, num_steps=4), truth) <= SAMPLER_FLOAT64


def test_guidance_moves_away_from_the_embedding_that_stands_for_no_class(foreign_unet, unet, by_the_paper):
    net = foreign_unet.DDPMDenoiser(unet, ALPHA_BAR, label_dim=10).eval()

    def guided(x, sigma, class_labels):
        scaled, timestep = x / (1 + sigma**2).sqrt(), net.timestep(sigma)
        noise = unet(scaled, timestep, torch.tensor(CLASSES)).sample
        without = unet(scaled, timestep, torch.full([3], 10)).sample
        return x - sigma * (without + 3 * (noise - without))

    ours = edm_fast.sample(net, SEEDS, CLASSES, num_steps=4, shape=SHAPE, guidance=3)
    truth = by_the_paper(guided, SHAPE, SEEDS, num_steps=4, sigma_min=net.sigma_min)
    assert relative_error(ours, truth) <= ROUNDING
    assert relative_error(ours, edm_fast.sample(net, SEEDS, CLASSES, num_steps=4, shape=SHAPE)) > 0.01


@pytest.mark.parametrize("batch", [1, 2])
def test_an_image_follows_from_its_seed_and_not_from_the_batch(net, batch):
    whole = edm_fast.sample(net, SEEDS, CLASSES, num_steps=4, shape=SHAPE)
    parts = edm_fast.sample(net, SEEDS[::-1], CLASSES[::-1], num_steps=4, shape=SHAPE, batch=batch)
    assert relative_error(parts.flip(0), whole) <= ROUNDING


def test_an_unknown_prediction_is_refused(foreign_unet, unet):
    with pytest.raises(ValueError, match=r"^prediction_type: got 'sample'"):
        foreign_unet.DDPMDenoiser(unet, ALPHA_BAR, "sample")


def test_a_missing_package_is_named_with_the_command_that_installs_it(example, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'edm-fast\[diffusers\]'"):
        example("foreign_unet")


def test_it_runs_from_another_folder(run_elsewhere, tmp_path):
    printed = run_elsewhere("foreign_unet", "--outdir", "a/b", "--seeds", "0-2", "--steps", 3)
    assert "3 rows of 3 images" in printed
    pixels = np.asarray(Image.open(tmp_path / "a" / "b" / "foreign_unet.png"))
    assert pixels.shape == (3 * 34 + 2, 3 * 34 + 2, 3)
    by_seed, by_latents, guided = (pixels[34 * row : 34 * (row + 1)] for row in range(3))
    assert np.array_equal(by_seed, by_latents)
    assert not np.array_equal(by_seed, guided)


def test_it_takes_a_pipeline_that_was_saved(foreign_unet, tmp_path):
    torch.manual_seed(1)
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    unet = diffusers.UNet2DModel(
        (8, 12), 1, 1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4, **blocks
    )
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "saved")
    given = ["--pipeline", tmp_path / "saved", "--outdir", tmp_path, "--seeds", "1,4", "--steps", 3]
    result = CliRunner().invoke(foreign_unet.main, [str(each) for each in given])
    assert result.exit_code == 0, result.output
    net = foreign_unet.DDPMDenoiser(unet.eval(), scheduler.alphas_cumprod, "v_prediction")
    expected = edm_fast.sample(net, [1, 4], num_steps=3, shape=(1, 8, 12))
    sheet = images.contact_sheet(images.to_bytes(torch.cat([expected, expected])), columns=2)
    difference = np.asarray(Image.open(tmp_path / "foreign_unet.png")).astype(int) - sheet[..., 0]
    assert np.abs(difference).max() <= 1  # float32 networks may round differently in another process
