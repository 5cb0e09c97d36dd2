"""A run in its folder: an interrupted one ends in the same bits; log, samples and averages; what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from PIL import Image
from training.runs import CONFIG, StopAfter, colour_data, run

from edm_fast.checkpoints.native import load_network
from edm_fast.errors import CheckpointError
from edm_fast.training.data import open_data
from edm_fast.training.loop import Trainer
from edm_fast.training.run import LOG_NAME, NETWORK_NAME, PLOT_NAME, STATE_NAME, Run
from edm_fast.training.run_log import LossBySigma, RunLog

FULL = dataclasses.replace(
    CONFIG, augment=0.5, power_ema=(0.1, 0.05), ema=(100, 1000), micro_batch=12, dropout=0.2, precond="ve"
)


@pytest.fixture(scope="module")
def data():
    return open_data("digits")


@pytest.mark.parametrize("stops", [[1], [5], [2, 3]], ids=str)
@pytest.mark.parametrize("config", [CONFIG, FULL], ids=["plain", "full"])
def test_interrupted_run_ends_in_the_same_bits(stops, config, tmp_path):
    data = colour_data()
    whole = run(config, data, tmp_path / "whole", snapshot=96)
    for steps in stops:
        partial = run(config, data, tmp_path / "parts", snapshot=96, should_stop=StopAfter(steps))
        assert partial.step < config.steps
        assert not (tmp_path / "parts" / NETWORK_NAME).exists()
        torch.rand(3)
    again = run(config, data, tmp_path / "parts", snapshot=96)
    assert again.step == whole.step == 8
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in (tmp_path / "parts").iterdir()} == names
    assert len([name for name in names if name.startswith("power-ema")]) == 3 * len(config.power_ema)
    for name in names - {LOG_NAME, PLOT_NAME}:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    lines = [[json.loads(line) for line in (tmp_path / part / LOG_NAME).read_text().splitlines()]
             for part in ("whole", "parts")]  # fmt: skip
    for record in (*lines[0], *lines[1]):
        del record["seconds"]
    assert lines[0] == lines[1]
    assert [record["images"] for record in lines[0]] == [96, 192, 256]


def test_dropping_out_of_the_loop_loses_no_more_than_a_snapshot(data, tmp_path):
    trainer = Trainer(CONFIG, data)

    def crash():
        if trainer.step == 6:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        Run(trainer, tmp_path).go(snapshot=64, progress=False, should_stop=crash)
    again = Run(Trainer(CONFIG, data), tmp_path)
    assert again.resume()
    assert again.trainer.step == 4


def test_network_file_holds_the_first_average_in_float16(data, tmp_path):
    trainer = run(dataclasses.replace(CONFIG, ema=(500, 10)), data, tmp_path)
    net = load_network(tmp_path / NETWORK_NAME)
    averaged = trainer.averages[0].net.state_dict()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, averaged[name].half().float())
    assert net.label_dim == 10
    assert net.sigma_data == CONFIG.sigma_data
    moved = [not torch.equal(a, b) for a, b in zip(net.parameters(), trainer.net.parameters(), strict=True)]
    assert any(moved)


def test_a_finished_run_is_left_as_it_is(data, tmp_path):
    run(CONFIG, data, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run(CONFIG, data, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_samples_are_drawn_at_every_snapshot(tmp_path):
    run(CONFIG, colour_data(), tmp_path, grid=6, snapshot=128)
    grids = sorted(path.name for path in tmp_path.glob("samples-*.png"))
    assert grids == ["samples-0000000128.png", "samples-0000000256.png"]
    assert Image.open(tmp_path / grids[0]).mode == "RGB"


def test_the_log_says_what_happened(data, tmp_path):
    trainer = run(CONFIG, data, tmp_path, snapshot=128)
    first, last = RunLog(tmp_path / LOG_NAME).records()
    assert (first["images"], last["images"]) == (128, 256)
    assert sum(row[1] for row in first["loss_by_sigma"]) == 128
    mean = sum(row[1] * row[2] for row in last["loss_by_sigma"]) / 128
    assert last["loss"] == pytest.approx(mean)
    assert last["lr"] == trainer.config.learning_rate(7)
    assert last["nonfinite_gradients"] == 0
    assert (tmp_path / PLOT_NAME).read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_plot(data, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    run(CONFIG, data, tmp_path)
    assert not (tmp_path / PLOT_NAME).exists()


def test_losses_are_sorted_into_bins_by_sigma():
    bins = LossBySigma()
    bins.add(torch.tensor([0.5, 0.5001, 20.0, 1e9]), torch.tensor([1.0, 3.0, 5.0, float("nan")]))
    assert bins.images == 4
    rows = bins.rows()
    assert [row[1:] for row in rows] == [[2, 2.0, 1.0], [1, 5.0, 0.0], [1, 0.0, 0.0]]
    assert rows[0][0] == pytest.approx(0.5, rel=0.15)
    assert bins.mean == pytest.approx(9 / 4)


def test_a_failed_write_leaves_the_old_state_whole(data, tmp_path, monkeypatch):
    made = Run(Trainer(CONFIG, data), tmp_path)
    made.trainer.train_step()
    made.save_state()
    before = (tmp_path / STATE_NAME).read_bytes()
    made.trainer.train_step()
    monkeypatch.setattr("edm_fast.files.os.fsync", lambda descriptor: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        made.save_state()
    assert (tmp_path / STATE_NAME).read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == [STATE_NAME]


def test_resume_without_a_state_changes_nothing(data, tmp_path):
    made = Run(Trainer(CONFIG, data), tmp_path)
    assert made.resume() is False
    assert made.trainer.step == 0


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "empty"])
def test_a_damaged_state_is_refused_by_name(damage, data, tmp_path):
    made = Run(Trainer(CONFIG, data), tmp_path)
    made.trainer.train_step()
    made.save_state()
    path = tmp_path / STATE_NAME
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(
        {"truncated": content[:-100], "flipped": content, "foreign": b"\x80\x02}q\x00." * 9, "empty": b""}[damage]
    )
    fresh = Run(Trainer(CONFIG, data), tmp_path)
    with pytest.raises(CheckpointError, match=STATE_NAME):
        fresh.resume()
    assert fresh.trainer.step == 0


def test_a_state_of_other_settings_or_data_is_refused_with_the_difference(data, tmp_path):
    Run(Trainer(CONFIG, data), tmp_path).save_state()
    other = Run(Trainer(dataclasses.replace(CONFIG, lr=0.5), data), tmp_path)
    with pytest.raises(CheckpointError, match=rf"{STATE_NAME}.*lr 0.002 \(now 0.5\)"):
        other.resume()
    Run(Trainer(CONFIG, colour_data()), tmp_path).save_state()
    with pytest.raises(CheckpointError, match="other data than colour"):
        Run(Trainer(CONFIG, colour_data(fingerprint="changed")), tmp_path).resume()
