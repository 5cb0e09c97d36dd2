"""The training loop: it learns, all its random numbers follow from seed and position, and it survives bad gradients."""

from __future__ import annotations

import dataclasses
import logging
import math

import pytest
import torch
from training.runs import CONFIG, NETWORK, colour_data, weights

from edm_fast.training.config import TrainConfig
from edm_fast.training.data import open_data
from edm_fast.training.loop import Trainer, replace_nonfinite, stream_key
from edm_fast.training.presets import PRESETS, preset


@pytest.fixture(scope="module")
def data():
    return open_data("digits")


def trained(steps, config=CONFIG, data=None):
    trainer = Trainer(config, data or open_data("digits"))
    losses = [trainer.train_step().loss for _ in range(steps)]
    return trainer, losses


def test_loss_falls(data):
    _, losses = trained(60, dataclasses.replace(CONFIG, duration=32 * 60, dropout=0.0), data)
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


@pytest.mark.parametrize("precond", ["edm", "vp", "ve"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_preconditioning_and_dtype_learns(precond, dtype):
    scale = 128.0 if dtype == "float16" else 1.0
    config = dataclasses.replace(
        CONFIG, precond=precond, dtype=dtype, loss_scale=scale, augment=0.12, warmup=0, decay="none", sigma_data=0.5
    )
    trainer, losses = trained(4, config, colour_data())
    assert all(math.isfinite(loss) for loss in losses)
    assert trainer.nonfinite_gradients == 0
    assert type(trainer.net).__name__ == {"edm": "EDMPrecond", "vp": "VPPrecond", "ve": "VEPrecond"}[precond]
    assert trainer.net.model.map_augment.weight.shape[1] == 9
    assert all(parameter.dtype == torch.float32 for parameter in trainer.net.parameters())
    assert not torch.equal(weights(trainer), weights(Trainer(config, colour_data())))


def test_a_loss_scale_changes_nothing_but_rounding(data):
    plain, _ = trained(2, CONFIG, data)
    scaled, _ = trained(2, dataclasses.replace(CONFIG, loss_scale=2.0**10), data)
    torch.testing.assert_close(weights(scaled), weights(plain), rtol=0, atol=1e-6)


def test_gradients_are_accumulated_over_parts_of_the_batch(data):
    config = dataclasses.replace(CONFIG, dropout=0.0)
    gradients = []
    for micro_batch in (None, 16, 5):
        trainer, _ = trained(1, dataclasses.replace(config, micro_batch=micro_batch), data)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.net.parameters()]))
    for parts in gradients[1:]:
        torch.testing.assert_close(parts, gradients[0], rtol=1e-4, atol=1e-6 * float(gradients[0].abs().max()))


def test_an_images_noise_does_not_depend_on_the_part_it_is_in(data, monkeypatch):
    seen = {}
    for micro_batch in (None, 8):
        trainer = Trainer(dataclasses.replace(CONFIG, micro_batch=micro_batch), data)
        trainer.train_step()
        seen[micro_batch] = trainer.losses.sums[0]
    assert torch.equal(seen[None], seen[8])
    assert stream_key(0, 5) - stream_key(0, 4) == 1
    assert stream_key(0, 5) != stream_key(1, 5)


def test_the_seed_decides_and_the_callers_random_state_is_left_alone(data):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first, _ = trained(2, CONFIG, data)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(456)
    second, _ = trained(2, CONFIG, data)
    third, _ = trained(2, dataclasses.replace(CONFIG, seed=1), data)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(third))


def test_an_epoch_visits_every_image_once_and_epochs_differ():
    trainer = Trainer(dataclasses.replace(CONFIG, batch=8), colour_data(20))
    visited = [index for step in range(5) for index in trainer.indices(8 * step, 8).tolist()]
    assert sorted(visited[:20]) == sorted(visited[20:]) == list(range(20))
    assert visited[:20] != visited[20:]
    assert trainer.indices(0, 40).tolist() == visited


def test_labels_can_be_left_out():
    assert Trainer(CONFIG, colour_data()).net.label_dim == 2
    unconditional, losses = trained(1, dataclasses.replace(CONFIG, labels=False), colour_data())
    assert unconditional.net.label_dim == 0
    assert math.isfinite(losses[0])


def test_averages_follow_with_their_half_lives(data):
    config = dataclasses.replace(CONFIG, ema=(1e9, 0), ema_ramp_up=1e9, power_ema=(0.1,))
    trainer, _ = trained(3, config, data)
    slow, fast = (torch.cat([p.flatten() for p in average.net.parameters()]) for average in trainer.averages)
    assert torch.equal(fast, weights(trainer))
    assert not torch.equal(slow, weights(trainer))
    assert trainer.power_averages.sigma_rels == (0.1,)
    between = torch.cat([p.flatten() for p in trainer.power_averages.nets[0].parameters()])
    assert not torch.equal(between, weights(trainer))


def test_learning_rate_rises_linearly_and_falls_as_a_cosine():
    config = dataclasses.replace(CONFIG, duration=1000, batch=10, warmup=100, lr=2.0, decay="none")
    assert [config.learning_rate(step) for step in (0, 5, 10, 99)] == [0, 1, 2, 2]
    cosine = dataclasses.replace(config, decay="cosine")
    assert cosine.learning_rate(50) == pytest.approx(1.0)
    assert cosine.learning_rate(99) == pytest.approx(1 + math.cos(math.pi * 0.99))


def test_bad_gradients_are_replaced_and_counted():
    first = torch.tensor([1.0, math.nan, math.inf])
    second = torch.tensor([-math.inf, 3.0])
    assert replace_nonfinite([first, second, torch.ones(2)]) == 3
    assert first.tolist() == [1, 0, 1e5]
    assert second.tolist() == [-1e5, 3]
    assert replace_nonfinite([]) == 0


def test_bad_gradients_are_reported_and_the_weights_stay_finite(data, caplog, monkeypatch):
    trainer = Trainer(CONFIG, data)
    batch = data.batch
    monkeypatch.setattr(
        data, "batch", lambda indices: (batch(indices)[0].index_fill(0, torch.tensor(0), math.nan), batch(indices)[1])
    )
    with caplog.at_level(logging.WARNING):
        trainer.train_step()
    assert trainer.nonfinite_gradients > 0
    assert f"step 0: replaced {trainer.nonfinite_gradients}" in caplog.text
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.net.parameters())


def test_a_batch_that_the_processes_cannot_share_is_refused(data):
    from edm_fast.training.distributed import World

    with pytest.raises(ValueError, match="^batch must be a multiple of the 3 processes"):
        Trainer(CONFIG, data, World(0, 3))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("precond", "cats"),
        ("decay", "step"),
        ("dtype", "int8"),
        ("duration", 0),
        ("batch", 0),
        ("micro_batch", 33),
        ("micro_batch", 0),
        ("lr", 0.0),
        ("lr", math.nan),
        ("sigma_data", -1.0),
        ("loss_scale", 0.0),
        ("warmup", -1),
        ("ema", (math.inf,)),
        ("ema", ()),
        ("ema", (1, 1)),
        ("dropout", 1.0),
        ("augment", 1.5),
        ("P_mean", math.nan),
        ("seed", -1),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must"):
        dataclasses.replace(CONFIG, **{name: value})


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole_and_take_changes(name):
    config = preset(name, batch=12, seed=3)
    assert (config.batch, config.seed) == (12, 3)
    assert preset("digits") == TrainConfig()
    if name.startswith("cifar10"):
        assert (config.lr, config.warmup, config.ema, config.augment) == (1e-3, 10_000_000, (500_000,), 0.12)
    with pytest.raises(ValueError, match="^preset must be one of"):
        preset("lsun")


def test_the_network_is_the_settings():
    trainer = Trainer(dataclasses.replace(CONFIG, dropout=0.3, network={**NETWORK, "num_blocks": 2}), colour_data())
    assert trainer.net.init_kwargs["dropout"] == 0.3
    assert trainer.net.init_kwargs["num_blocks"] == 2
    assert trainer.net.sigma_data == CONFIG.sigma_data
