"""What diffusers and its pipelines expect of any scheduler, of the two schedulers here."""

from __future__ import annotations

import inspect
import json
import logging
import math

import numpy as np
import pytest
import torch
from tolerance import SAMPLER_FLOAT64, assert_same_bits, relative_error

from edm_fast.samplers.schedules import edm_sigmas, exponential_sigmas

diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install 'edm-fast[diffusers]'")

from edm_fast.compat.diffusers import EDMEulerScheduler, EDMHeunScheduler  # noqa: E402

BOTH = pytest.mark.parametrize("scheduler_class", [EDMHeunScheduler, EDMEulerScheduler])
CHURN = {"S_churn": 2, "S_min": 0.05, "S_max": 50, "S_noise": 1.003}
SAMPLE = torch.randn([2, 3, 4, 4], generator=torch.Generator().manual_seed(0))


def ready(scheduler, num_steps=6):
    scheduler.set_timesteps(num_steps)
    return scheduler


def evaluate(scheduler, sample, timestep, generator=None):
    model_output = torch.sin(3 * scheduler.scale_model_input(sample, timestep))
    return scheduler.step(model_output, timestep, sample, generator=generator)


def states(scheduler, sample, timesteps, seeds=(1,)):
    """The samples after each evaluation."""
    generator = [torch.Generator().manual_seed(seed) for seed in seeds]
    after = []
    for t in timesteps:
        sample = evaluate(scheduler, sample, t, generator).prev_sample
        after.append(sample)
    return after


def test_euler_visits_every_level_once_and_heun_all_but_the_first_twice():
    levels = edm_sigmas(6)
    euler, heun = ready(EDMEulerScheduler()), ready(EDMHeunScheduler())
    assert (euler.order, heun.order) == (1, 2)
    assert euler.num_inference_steps == heun.num_inference_steps == 6
    twice = np.repeat(levels, 2)[1:]
    for scheduler, visited in ((euler, levels), (heun, twice)):
        assert len(scheduler.timesteps) == len(visited)
        assert scheduler.timesteps.dtype == torch.float32
        assert torch.allclose(scheduler.timesteps.double(), torch.tensor(np.log(visited) / 4))
        assert torch.allclose(scheduler.sigmas.double(), torch.tensor([*visited, 0.0]))
    assert len(heun.timesteps) == 2 * 6 - 1
    assert len(euler) == len(heun) == 1000


def test_timesteps_are_those_of_the_churned_levels():
    levels = edm_sigmas(6)
    heun = ready(EDMHeunScheduler(S_churn=2, S_max=50))
    raised = np.where(levels <= 50, 1 + 2 / 6, 1) * levels
    expected = np.empty(11)
    expected[::2], expected[1::2] = raised, levels[1:]
    assert torch.allclose(heun.timesteps.double(), torch.tensor(np.log(expected) / 4))


@BOTH
def test_init_noise_sigma_is_sigma_max_before_and_after_set_timesteps(scheduler_class):
    scheduler = scheduler_class(sigma_max=40.0)
    assert scheduler.init_noise_sigma == 40
    assert ready(scheduler).init_noise_sigma == pytest.approx(40)
    scheduler.set_timesteps(sigmas=[10.0, 1.0])
    assert scheduler.init_noise_sigma == pytest.approx(10)


@BOTH
def test_own_noise_levels_take_the_place_of_the_schedules(scheduler_class):
    expected = states(ready(scheduler_class()), SAMPLE, ready(scheduler_class()).timesteps)[-1]
    for given in (edm_sigmas(6), torch.tensor(edm_sigmas(6)), [*edm_sigmas(6).tolist(), 0.0]):
        scheduler = scheduler_class()
        scheduler.set_timesteps(sigmas=given, device="cpu")
        assert scheduler.num_inference_steps == 6
        assert_same_bits(states(scheduler, SAMPLE, scheduler.timesteps)[-1], expected)


@BOTH
def test_before_set_timesteps_the_training_levels_stand_ready(scheduler_class):
    scheduler = scheduler_class(num_train_timesteps=20, sigma_schedule="exponential")
    sigma = float(exponential_sigmas(20, 0.002, 80)[4])
    t = scheduler.timesteps[4]
    assert len(scheduler.timesteps) == len(scheduler) == 20
    assert scheduler.num_inference_steps is None
    noise = torch.ones_like(SAMPLE)
    assert torch.allclose(scheduler.add_noise(SAMPLE, noise, t[None]), SAMPLE + sigma)
    assert torch.allclose(scheduler.scale_model_input(SAMPLE, t), SAMPLE / math.hypot(sigma, 0.5))
    with pytest.raises(ValueError, match="num_inference_steps.*set_timesteps"):
        scheduler.step(SAMPLE, t, SAMPLE)


@BOTH
def test_scale_model_input_changes_and_draws_nothing(scheduler_class):
    scheduler = ready(scheduler_class(**CHURN))
    t, state = scheduler.timesteps[0], torch.get_rng_state()
    for _ in range(3):
        doubled = scheduler.scale_model_input(torch.cat([SAMPLE, SAMPLE]), t)
    assert torch.allclose(doubled, torch.cat([SAMPLE, SAMPLE]) / math.hypot(80, 0.5))
    assert scheduler.step_index == 0
    assert_same_bits(torch.get_rng_state(), state)


@BOTH
def test_a_step_gives_the_same_as_tuple_and_as_output(scheduler_class):
    first, second = ready(scheduler_class(**CHURN)), ready(scheduler_class(**CHURN))
    for t in first.timesteps[:4]:
        for scheduler in (first, second):
            scheduler.scale_model_input(SAMPLE, t)
        generators = [torch.Generator().manual_seed(1) for _ in range(2)]
        output = first.step(SAMPLE / 2, t, SAMPLE, generator=generators[0])
        by_tuple = second.step(SAMPLE / 2, t, SAMPLE, generator=generators[1], return_dict=False)
        assert isinstance(by_tuple, tuple)
        assert_same_bits(by_tuple[0], output.prev_sample)
        assert_same_bits(by_tuple[1], output.pred_original_sample)
        assert_same_bits(output[0], output.prev_sample)


@BOTH
def test_pred_original_sample_is_the_denoised_sample(scheduler_class):
    scheduler = ready(scheduler_class(**CHURN))
    for index, t in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[index])
        model_output = torch.sin(scheduler.scale_model_input(SAMPLE, t))
        denoised = scheduler.step(model_output, t, SAMPLE).pred_original_sample
        expected = 0.25 / (sigma**2 + 0.25) * SAMPLE + sigma / 2 / math.hypot(sigma, 0.5) * model_output
        assert torch.allclose(denoised, expected, rtol=1e-5, atol=1e-6)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_a_step_gives_is_like_the_sample_and_the_sample_stays(scheduler_class, dtype):
    scheduler = ready(scheduler_class(**CHURN))
    sample = SAMPLE.to(dtype).transpose(2, 3)
    before = sample.clone()
    for t in scheduler.timesteps:
        output = scheduler.step(scheduler.scale_model_input(sample, t), t, sample)
        for tensor in (output.prev_sample, output.pred_original_sample):
            assert (tensor.dtype, tensor.shape, tensor.requires_grad) == (dtype, sample.shape, False)
            assert bool(tensor.isfinite().all())
    assert_same_bits(sample, before)


@BOTH
def test_add_noise_takes_the_level_of_each_samples_timestep(scheduler_class):
    scheduler = ready(scheduler_class(**CHURN))
    noise = torch.randn_like(SAMPLE)
    noisy = scheduler.add_noise(SAMPLE, noise, scheduler.timesteps[[1, 4]])
    for sample, index in enumerate((1, 4)):
        assert torch.allclose(noisy[sample], SAMPLE[sample] + scheduler.sigmas[index] * noise[sample])


@BOTH
def test_add_noise_of_image_to_image_and_of_inpainting(scheduler_class):
    scheduler = ready(scheduler_class(**CHURN))
    begin = 2 * scheduler.order
    t, noise = scheduler.timesteps[begin], torch.ones_like(SAMPLE)
    scheduler.set_begin_index(begin)
    assert scheduler.begin_index == begin
    noisy = scheduler.add_noise(SAMPLE, noise, t[None])
    assert torch.allclose(noisy, SAMPLE + scheduler.sigmas[begin])
    evaluate(scheduler, noisy, t)
    assert torch.allclose(scheduler.add_noise(SAMPLE, noise, t[None]), SAMPLE + scheduler.sigmas[begin + 1])


@BOTH
@pytest.mark.parametrize("churn", [{}, {"S_churn": 2, "S_max": 1}], ids=["deterministic", "churn"])
@pytest.mark.parametrize("by_index", [True, False])
def test_a_run_that_begins_later_is_the_rest_of_a_whole_one(scheduler_class, churn, by_index):
    whole = ready(scheduler_class(**churn))
    begin = 2 * whole.order
    after = states(whole, SAMPLE.double(), whole.timesteps)
    late = ready(scheduler_class(**churn))
    if by_index:
        late.set_begin_index(begin)
    rest = states(late, after[begin - 1], late.timesteps[begin:])
    assert relative_error(rest[-1], after[-1]) <= SAMPLER_FLOAT64


def test_a_heun_step_goes_on_from_the_sample_it_is_given():
    """Pipelines for inpainting change the sample between evaluations."""
    scheduler, twin = ready(EDMHeunScheduler()), ready(EDMHeunScheduler())
    t = scheduler.timesteps
    euler = evaluate(scheduler, SAMPLE.double(), t[0]).prev_sample
    evaluate(twin, SAMPLE.double(), t[0])
    changed = evaluate(twin, euler + 1, t[1]).prev_sample
    same = evaluate(scheduler, euler, t[1]).prev_sample
    assert relative_error(changed, same) > SAMPLER_FLOAT64
    sigma, h = edm_sigmas(6)[:2], edm_sigmas(6)[1] - edm_sigmas(6)[0]

    def slope(x, level):
        output = torch.sin(3 * x / math.hypot(level, 0.5))
        return (x - 0.25 / (level**2 + 0.25) * x - level / 2 / math.hypot(level, 0.5) * output) / level

    expected = SAMPLE.double() + h / 2 * (slope(SAMPLE.double(), sigma[0]) + slope(euler + 1, sigma[1]))
    assert relative_error(changed, expected) <= SAMPLER_FLOAT64


@BOTH
def test_set_timesteps_forgets_an_unfinished_run(scheduler_class):
    scheduler = ready(scheduler_class())
    expected = states(ready(scheduler_class()), SAMPLE, scheduler.timesteps)[-1]
    evaluate(scheduler, SAMPLE, scheduler.timesteps[0])
    assert scheduler.step_index == 1
    ready(scheduler)
    assert scheduler.step_index is None
    assert_same_bits(states(scheduler, SAMPLE, scheduler.timesteps)[-1], expected)
    with pytest.raises(ValueError, match=r"^timestep: all .* set_timesteps"):
        scheduler.step(SAMPLE, scheduler.timesteps[-1], SAMPLE)


@BOTH
def test_the_configuration_is_saved_and_loaded(scheduler_class, tmp_path):
    given = CHURN | {"sigma_max": 60.0, "rho": 6.0}
    scheduler = scheduler_class(**given)
    scheduler.save_pretrained(tmp_path)
    loaded = scheduler_class.from_pretrained(tmp_path)
    parameters = [name for name in inspect.signature(scheduler_class.__init__).parameters if name != "self"]
    assert {name: loaded.config[name] for name in parameters} == {name: scheduler.config[name] for name in parameters}
    assert {name: loaded.config[name] for name in given} == given
    t = ready(loaded).timesteps
    assert_same_bits(states(loaded, SAMPLE, t)[-1], states(ready(scheduler), SAMPLE, t)[-1])


def test_the_configuration_file_is_strict_json_without_an_upper_limit_too(tmp_path):
    EDMHeunScheduler(S_churn=2, S_max=math.inf).save_pretrained(tmp_path)

    def refuse(constant):
        raise AssertionError(constant)

    saved = json.loads((tmp_path / "scheduler_config.json").read_text(), parse_constant=refuse)
    assert saved["S_max"] is None
    assert ready(EDMHeunScheduler.from_pretrained(tmp_path)).init_noise_sigma == pytest.approx(80 * (1 + 2 / 6))


@BOTH
def test_the_configuration_of_diffusers_own_scheduler_is_taken(scheduler_class):
    theirs = diffusers.EDMEulerScheduler(sigma_max=120.0, sigma_data=1.0, prediction_type="v_prediction")
    ours = scheduler_class.from_config(theirs.config, S_churn=2)
    for name in ("sigma_max", "sigma_data", "prediction_type", "rho"):
        assert ours.config[name] == theirs.config[name]
    assert ours.config.S_churn == 2
    assert all(found is not None for found in ours.compatibles)


def test_step_without_scale_model_input_is_reported_once(caplog):
    scheduler = ready(EDMHeunScheduler())
    with caplog.at_level(logging.WARNING):
        for t in scheduler.timesteps[:2]:
            scheduler.step(SAMPLE, t, SAMPLE)
    assert [record.message.split()[0] for record in caplog.records] == ["scale_model_input"]


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"sigma_min": 0.0}, ValueError, "sigma_min"),
        ({"sigma_min": 100.0}, ValueError, "sigma_min"),
        ({"sigma_data": -1.0}, ValueError, "sigma_data"),
        ({"sigma_schedule": "linear"}, ValueError, "sigma_schedule"),
        ({"num_train_timesteps": 0}, ValueError, "num_train_timesteps"),
        ({"prediction_type": "sample"}, ValueError, "prediction_type"),
        ({"rho": math.nan}, ValueError, "rho"),
        ({"final_sigmas_type": "sigma_min"}, ValueError, "final_sigmas_type"),
        ({"S_churn": -1.0}, ValueError, "S_churn"),
        ({"S_min": "0"}, TypeError, "S_min"),
        ({"S_max": math.nan}, ValueError, "S_max"),
        ({"S_noise": math.inf}, ValueError, "S_noise"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(arguments, error, name):
    with pytest.raises(error, match=f"^{name}"):
        EDMHeunScheduler(**arguments)


@pytest.mark.parametrize(
    ("act", "error", "name"),
    [
        (lambda s: s.set_timesteps(0), ValueError, "num_inference_steps"),
        (lambda s: s.set_timesteps(), TypeError, "num_inference_steps"),
        (lambda s: s.set_timesteps(sigmas=[1.0, 2.0]), ValueError, "sigmas"),
        (lambda s: s.set_timesteps(sigmas=[]), ValueError, "sigmas"),
        (lambda s: s.set_timesteps(sigmas=[math.inf, 1.0]), ValueError, "sigmas"),
        (lambda s: s.set_timesteps(3, sigmas=[2.0, 1.0]), ValueError, "sigmas"),
        (lambda s: s.step(SAMPLE, 1, SAMPLE), ValueError, "timestep: .* one of"),
        (lambda s: s.step(SAMPLE, s.timesteps[1], SAMPLE), ValueError, "timestep: .* second evaluation"),
        (lambda s: s.scale_model_input(SAMPLE, 0.123), ValueError, "timestep: .* one of"),
        (lambda s: s.add_noise(SAMPLE, SAMPLE, torch.tensor([0.123])), ValueError, "timestep: .* one of"),
        (lambda s: s.step(SAMPLE[:1], s.timesteps[0], SAMPLE), ValueError, "model_output"),
        (lambda s: s.step(None, s.timesteps[0], SAMPLE), TypeError, "model_output"),
        (lambda s: s.step(SAMPLE, s.timesteps[0], SAMPLE.int()), TypeError, "sample"),
        (lambda s: [s.step(x, s.timesteps[0], x) for x in (SAMPLE, SAMPLE[:1])], ValueError, "sample"),
        (lambda s: states(s, SAMPLE, s.timesteps[2:4], seeds=[1, 2, 3]), ValueError, "generator"),
        (lambda s: (s.set_begin_index(3), s.step(SAMPLE, s.timesteps[3], SAMPLE)), ValueError, "begin_index"),
        (lambda s: (s.set_begin_index(99), s.scale_model_input(SAMPLE, 0.0)), ValueError, "begin_index"),
    ],
)
def test_a_wrong_call_is_named(act, error, name):
    scheduler = ready(EDMHeunScheduler(S_churn=2, S_max=50))
    with pytest.raises(error, match=f"^{name}"):
        act(scheduler)
