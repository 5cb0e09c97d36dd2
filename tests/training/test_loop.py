"""The training loop: it learns, it survives bad gradients, and an interrupted run ends in the same bits."""

from __future__ import annotations

import dataclasses
import logging
import math

import pytest
import torch

from edm_fast.checkpoints.native import load_network
from edm_fast.errors import CheckpointError
from edm_fast.training.config import TrainConfig
from edm_fast.training.data import Dataset, split_digits
from edm_fast.training.loop import NETWORK_NAME, STATE_NAME, Trainer, replace_nonfinite

CONFIG = TrainConfig(
    duration=32 * 8,
    batch=32,
    warmup=64,
    network={
        "model_type": "SongUNet",
        "model_channels": 16,
        "channel_mult": [1],
        "num_blocks": 1,
        "attn_resolutions": [],
    },
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return split_digits()[0]


class StopAfter:
    """Asks for an end after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def run(config, data, outdir, **options) -> Trainer:
    outdir.mkdir(exist_ok=True)
    trainer = Trainer(config, data, outdir)
    trainer.resume()
    trainer.run(progress=False, **options)
    return trainer


def test_loss_falls(data, tmp_path):
    trainer = Trainer(dataclasses.replace(CONFIG, duration=32 * 60, dropout=0.0), data, tmp_path)
    losses = [trainer.train_step() for _ in range(60)]
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


@pytest.mark.parametrize("stops", [[1], [5], [2, 3]], ids=str)
def test_interrupted_run_ends_in_the_same_bits(stops, data, tmp_path):
    whole = run(CONFIG, data, tmp_path / "whole")
    for steps in stops:
        partial = run(CONFIG, data, tmp_path / "parts", should_stop=StopAfter(steps))
        assert partial.step < CONFIG.steps
        assert not (tmp_path / "parts" / NETWORK_NAME).exists()
        torch.rand(3)
    again = run(CONFIG, data, tmp_path / "parts")
    assert again.step == whole.step == 8
    for name in (STATE_NAME, NETWORK_NAME):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_dropping_out_of_the_loop_loses_no_more_than_a_snapshot(data, tmp_path):
    def crash():
        if trainer.step == 6:
            raise KeyboardInterrupt
        return False

    trainer = Trainer(CONFIG, data, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(snapshot=64, progress=False, should_stop=crash)
    again = Trainer(CONFIG, data, tmp_path)
    assert again.resume()
    assert again.step == 4


def test_network_file_holds_the_average_in_float16(data, tmp_path):
    trainer = run(CONFIG, data, tmp_path)
    net = load_network(tmp_path / NETWORK_NAME)
    averaged = trainer.ema.net.state_dict()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, averaged[name].half().float())
    assert net.label_dim == 10
    assert net.sigma_data == CONFIG.sigma_data
    moved = [not torch.equal(a, b) for a, b in zip(net.parameters(), trainer.net.parameters(), strict=True)]
    assert any(moved)


def test_seed_decides_and_the_callers_random_state_is_left_alone(data, tmp_path):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = run(CONFIG, data, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(456)
    second = run(CONFIG, data, tmp_path / "b")
    third = run(dataclasses.replace(CONFIG, seed=1), data, tmp_path / "c")
    weights = [torch.cat([p.detach().flatten() for p in t.net.parameters()]) for t in (first, second, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_epoch_visits_every_image_once_and_epochs_differ(data, tmp_path):
    small = Dataset(data.images[:20], data.labels[:20])
    trainer = Trainer(dataclasses.replace(CONFIG, batch=8), small, tmp_path)
    visited = []
    for step in range(5):
        trainer.step = step
        visited += trainer._next_batch().tolist()
    assert sorted(visited[:20]) == sorted(visited[20:]) == list(range(20))
    assert visited[:20] != visited[20:]


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


def test_bad_gradients_are_reported_and_the_weights_stay_finite(data, tmp_path, caplog):
    images = data.images.clone()
    trainer = Trainer(CONFIG, Dataset(images, data.labels), tmp_path)
    poisoned = trainer._next_batch()[0]
    trainer.images[poisoned] = math.nan
    with caplog.at_level(logging.WARNING):
        trainer.run(progress=False)
    assert trainer.nonfinite_gradients > 0
    assert "step 0: replaced" in caplog.text
    assert f"{trainer.nonfinite_gradients} gradient values" in caplog.text
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.net.parameters())


def test_failed_write_leaves_the_old_state_whole(data, tmp_path, monkeypatch):
    trainer = Trainer(CONFIG, data, tmp_path)
    trainer.train_step()
    trainer.save_state()
    before = (tmp_path / STATE_NAME).read_bytes()
    trainer.train_step()
    monkeypatch.setattr("edm_fast.files.os.fsync", lambda descriptor: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer.save_state()
    assert (tmp_path / STATE_NAME).read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == [STATE_NAME]


def test_resume_without_a_state_changes_nothing(data, tmp_path):
    trainer = Trainer(CONFIG, data, tmp_path)
    assert trainer.resume() is False
    assert trainer.step == 0


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "empty"])
def test_damaged_state_is_refused_by_name(damage, data, tmp_path):
    trainer = Trainer(CONFIG, data, tmp_path)
    trainer.train_step()
    trainer.save_state()
    path = tmp_path / STATE_NAME
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(
        {"truncated": content[:-100], "flipped": content, "foreign": b"\x80\x02}q\x00." * 9, "empty": b""}[damage]
    )
    fresh = Trainer(CONFIG, data, tmp_path)
    with pytest.raises(CheckpointError, match=STATE_NAME):
        fresh.resume()
    assert fresh.step == 0


def test_state_of_other_settings_is_refused_with_the_difference(data, tmp_path):
    trainer = Trainer(CONFIG, data, tmp_path)
    trainer.save_state()
    other = Trainer(dataclasses.replace(CONFIG, lr=0.5), data, tmp_path)
    with pytest.raises(CheckpointError, match=rf"{STATE_NAME}.*lr 0.002 \(now 0.5\)"):
        other.resume()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data", "cats"),
        ("decay", "step"),
        ("duration", 0),
        ("batch", 0),
        ("lr", 0.0),
        ("lr", math.nan),
        ("sigma_data", -1.0),
        ("warmup", -1),
        ("ema", math.inf),
        ("dropout", 1.0),
        ("P_mean", math.nan),
        ("seed", -1),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must"):
        dataclasses.replace(CONFIG, **{name: value})
