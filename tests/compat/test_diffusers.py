"""The schedulers for diffusers are Algorithm 2, element by element, in its own pipelines."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from conftest import cuda_usable
from tolerance import SAMPLER_FLOAT32, SAMPLER_FLOAT64, assert_same_bits, relative_error

from edm_fast.reference import samplers as reference
from edm_fast.samplers import ablation_sampler, edm_sampler
from edm_fast.samplers.schedules import edm_sigmas

diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install 'edm-fast[diffusers]'")

from edm_fast.compat.diffusers import EDMEulerScheduler, EDMHeunScheduler  # noqa: E402

STEPS = 6
CHURN = {"S_churn": 2, "S_min": 0.05, "S_max": 50, "S_noise": 1.003}
LATENTS = torch.randn([2, 3, 8, 8], dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def small_pipeline(scheduler, dtype=torch.float64):
    torch.manual_seed(2)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    pipeline = diffusers.ConsistencyModelPipeline(unet.to(dtype).eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def samples_of(pipeline, generator=None):
    """What the pipeline arrives at, before it is clamped to an image."""
    after = []
    pipeline(
        batch_size=len(LATENTS),
        num_inference_steps=STEPS,
        latents=LATENTS,
        generator=generator,
        output_type="np",
        callback=lambda index, timestep, sample: after.append(sample),
    )
    assert len(after) == pipeline.scheduler.order * (STEPS - 1) + 1
    return after[-1]


class Denoiser:
    """D(x; σ) around F, as Karras et al. 2022 precondition it."""

    sigma_min, sigma_max = 0, math.inf

    def __init__(self, network, sigma_data=0.5):
        self.network, self.sigma_data = network, sigma_data

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)

    def __call__(self, x, sigma, class_labels=None):
        variance = sigma**2 + self.sigma_data**2
        output = self.network(x / variance.sqrt(), (sigma.log() / 4).float())
        return self.sigma_data**2 / variance * x + sigma * self.sigma_data / variance.sqrt() * output


def denoiser_of(unet):
    return Denoiser(lambda x, t: unet(x.to(unet.dtype), t, return_dict=False)[0].double())


def nonlinear(x, t):
    return torch.tanh(3 * x + t) / 2


def run(scheduler, latents, num_steps=STEPS, network=nonlinear, generator=None):
    """The loop of every pipeline."""
    scheduler.set_timesteps(num_steps)
    sample = latents * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        model_output = network(scheduler.scale_model_input(sample, t), t)
        sample = scheduler.step(model_output, t, sample, generator=generator).prev_sample
    return sample


def churn_noise(generator, S_min=0.0, S_max=math.inf, dtype=torch.float64, num_steps=STEPS, **_):
    """A randn_like for our samplers that draws from `generator` where churn acts and nowhere else."""
    levels = iter(edm_sigmas(num_steps))

    def randn_like(x):
        acts = S_min <= next(levels) <= S_max
        return torch.randn(x.shape, dtype=dtype, generator=generator).to(x) if acts else torch.zeros_like(x)

    return randn_like


@pytest.mark.parametrize("churn", [{}, CHURN], ids=["deterministic", "churn"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, SAMPLER_FLOAT64), (torch.float32, SAMPLER_FLOAT32)])
def test_an_unmodified_pipeline_with_heun_gives_the_images_of_edm_sampler(churn, dtype, close):
    pipeline = small_pipeline(EDMHeunScheduler(**churn), dtype)
    net = denoiser_of(pipeline.unet)
    images = samples_of(pipeline, seeded())
    assert images.dtype == dtype
    for sampler in (edm_sampler, reference.edm_sampler):
        with torch.no_grad():
            noise = churn_noise(seeded(), dtype=dtype, **churn)
            expected = sampler(net, LATENTS.to(dtype), num_steps=STEPS, randn_like=noise, **churn)
        assert relative_error(images, expected) <= close


@pytest.mark.parametrize("churn", [{}, CHURN], ids=["deterministic", "churn"])
def test_an_unmodified_pipeline_with_euler_gives_the_images_of_the_ablation_sampler(churn):
    pipeline = small_pipeline(EDMEulerScheduler(**churn))
    images = samples_of(pipeline, seeded())
    noise = churn_noise(seeded(), **churn)
    with torch.no_grad():
        expected = ablation_sampler(
            denoiser_of(pipeline.unet), LATENTS, solver="euler", num_steps=STEPS, randn_like=noise, **churn
        )
    assert relative_error(images, expected) <= SAMPLER_FLOAT64


def test_churn_of_the_first_step_is_part_of_init_noise_sigma():
    """The latents and that churn add up to one normal number, so that all of Algorithm 2 fits in."""
    churn = {"S_churn": 2, "S_noise": 1.1}
    expected = edm_sampler(
        Denoiser(nonlinear), LATENTS, num_steps=STEPS, randn_like=churn_noise(seeded(), **churn), **churn
    )
    generator = seeded()
    first = torch.randn(LATENTS.shape, dtype=torch.float64, generator=generator)
    added = 1.1 * math.sqrt((80 * (1 + 2 / STEPS)) ** 2 - 80**2)
    scheduler = EDMHeunScheduler(**churn)
    scheduler.set_timesteps(STEPS)
    assert scheduler.init_noise_sigma == pytest.approx(math.hypot(80, added))
    latents = (80 * LATENTS + added * first) / scheduler.init_noise_sigma
    assert relative_error(run(scheduler, latents, generator=generator), expected) <= SAMPLER_FLOAT64


def test_a_pipeline_that_scales_its_latents_too_early_for_that_is_told():
    pipeline = small_pipeline(EDMHeunScheduler(S_churn=3))
    with pytest.raises(ValueError, match="init_noise_sigma.*S_max"):
        samples_of(pipeline)


@pytest.mark.parametrize(("scheduler_class", "published"), [(EDMHeunScheduler, 1.003), (EDMEulerScheduler, 0.927)])
def test_the_sample_std_of_normal_data_under_strong_churn(scheduler_class, published):
    """The network is exact for data ~ N(0, 1)."""

    def network(x, t):
        sigma = math.exp(4 * float(t))
        noisy, variance = x * math.hypot(sigma, 0.5), sigma**2 + 0.25
        return (noisy / (sigma**2 + 1) - 0.25 / variance * noisy) / (sigma * 0.5) * math.sqrt(variance)

    latents = torch.randn([16, 1, 64, 64], generator=seeded(3))
    scheduler = scheduler_class(S_churn=80)
    samples = run(scheduler, latents, 256, network, seeded(4))
    rounding, standard_error = 0.0005, published / math.sqrt(2 * latents.numel())
    assert abs(float(samples.std()) - published) <= rounding + 3 * standard_error


def test_v_prediction_is_the_network_with_the_other_sign():
    by_epsilon = run(EDMHeunScheduler(), LATENTS)
    by_v = run(EDMHeunScheduler(prediction_type="v_prediction"), LATENTS, network=lambda x, t: -nonlinear(x, t))
    assert_same_bits(by_v, by_epsilon)
    assert relative_error(run(EDMHeunScheduler(prediction_type="v_prediction"), LATENTS), by_epsilon) > SAMPLER_FLOAT32


@pytest.mark.parametrize("options", [{"sigma_schedule": "exponential"}, {"rho": 5.0}, {"sigma_max": 20.0}], ids=str)
def test_schedules_are_those_of_the_samplers(options):
    geometric = {"discretization": "ve", "sigma_min": 0.002, "sigma_max": 80}
    as_ours = geometric if "sigma_schedule" in options else options
    expected = ablation_sampler(Denoiser(nonlinear), LATENTS, num_steps=STEPS, **as_ours)
    assert relative_error(run(EDMHeunScheduler(**options), LATENTS), expected) <= SAMPLER_FLOAT64


def test_sigma_data_is_the_networks():
    expected = edm_sampler(Denoiser(nonlinear, sigma_data=0.8), LATENTS, num_steps=STEPS)
    assert relative_error(run(EDMHeunScheduler(sigma_data=0.8), LATENTS), expected) <= SAMPLER_FLOAT64


def test_one_step_is_one_evaluation():
    expected = edm_sampler(Denoiser(nonlinear), LATENTS, num_steps=1)
    for scheduler in (EDMHeunScheduler(), EDMEulerScheduler()):
        assert relative_error(run(scheduler, LATENTS, 1), expected) <= SAMPLER_FLOAT64


def test_a_list_of_generators_gives_every_sample_its_own_noise():
    together = run(EDMHeunScheduler(**CHURN), LATENTS, generator=[seeded(6), seeded(7)])
    for sample, seed in enumerate((6, 7)):
        alone = run(EDMHeunScheduler(**CHURN), LATENTS[sample : sample + 1], generator=seeded(seed))
        assert_same_bits(together[sample : sample + 1], alone)
    assert relative_error(together[:1], run(EDMHeunScheduler(**CHURN), LATENTS[:1], generator=seeded(7))) > 0


def test_without_churn_no_noise_is_drawn():
    generator = seeded()
    run(EDMHeunScheduler(), LATENTS, generator=generator)
    assert_same_bits(generator.get_state(), seeded().get_state())


def test_a_whole_pipeline_is_saved_and_loaded(tmp_path):
    pipeline = small_pipeline(EDMHeunScheduler(**CHURN), torch.float32)
    images = samples_of(pipeline, seeded())
    pipeline.save_pretrained(tmp_path)
    loaded = diffusers.ConsistencyModelPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is EDMHeunScheduler
    assert_same_bits(samples_of(loaded, seeded()), images)


@pytest.mark.skipif(not cuda_usable(), reason="no CUDA device, or no CUDA kernels in this build")
def test_on_cuda_a_generator_of_the_cpu_gives_the_same():
    expected = run(EDMHeunScheduler(**CHURN), LATENTS, generator=seeded())
    actual = run(EDMHeunScheduler(**CHURN), LATENTS.cuda(), generator=seeded())
    assert actual.device.type == "cuda"
    assert relative_error(actual, expected) <= SAMPLER_FLOAT64


def test_the_examples_of_the_page_run():
    page = (Path(__file__).parents[2] / "docs" / "coming-from-diffusers.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert type(names["pipeline"].scheduler) is EDMHeunScheduler
    assert names["image"].size == (8, 8)
