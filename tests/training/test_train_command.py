"""`edm-fast train` from the outside."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import edm_fast
from edm_fast.cli.train import train
from edm_fast.training.distributed import World
from edm_fast.training.run import LOG_NAME, NETWORK_NAME, PLOT_NAME, STATE_NAME
from edm_fast.training.state import read_state

TINY = ["--duration", "0.064", "--batch", "32", "--no-progress"]


def test_training_writes_a_network_and_a_second_run_changes_nothing(tmp_path):
    outdir = tmp_path / "new" / "run"
    result = CliRunner().invoke(train, ["--outdir", str(outdir), *TINY])
    assert result.exit_code == 0, result.output
    assert result.output.strip().endswith(str(outdir / NETWORK_NAME))
    assert sorted(item.name for item in outdir.iterdir()) == sorted([NETWORK_NAME, STATE_NAME, LOG_NAME, PLOT_NAME])
    before = (outdir / NETWORK_NAME).read_bytes()
    again = CliRunner().invoke(train, ["--outdir", str(outdir), *TINY])
    assert again.exit_code == 0
    assert "Going on" in again.output
    assert (outdir / NETWORK_NAME).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "--batch"),
        (["--lr", "-1"], "--lr"),
        (["--lr", "nan"], "lr must be positive"),
        (["--duration", "0"], "--duration"),
        (["--duration", "inf"], "--duration"),
        (["--dropout", "1"], "--dropout"),
        (["--data", "cats"], "cats: no such file"),
        (["--seed", "-1"], "--seed"),
        (["--decay", "steps"], "--decay"),
        (["--preset", "lsun"], "--preset"),
        (["--precond", "iddpm"], "--precond"),
        (["--micro-batch", "1000"], "micro_batch must"),
        (["--power-ema", "0.9"], "sigma_rel"),
        (["--ema", "inf"], "--ema"),
        (["--augment", "2"], "--augment"),
        (["--dtype", "float64"], "--dtype"),
        (["--device", "tpu"], "--device"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_refused_and_nothing_is_written(arguments, message, tmp_path):
    outdir = tmp_path / "out"
    result = CliRunner().invoke(train, ["--outdir", str(outdir), *arguments])
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert not outdir.exists()


def test_damaged_state_and_other_settings_are_plain_errors(tmp_path):
    (tmp_path / STATE_NAME).write_bytes(b"junk")
    result = CliRunner().invoke(train, ["--outdir", str(tmp_path), *TINY])
    assert result.exit_code == 1
    assert result.output.startswith("Error:")
    assert STATE_NAME in result.output
    fresh = CliRunner().invoke(train, ["--outdir", str(tmp_path), *TINY, "--no-resume"])
    assert fresh.exit_code == 0
    other = CliRunner().invoke(train, ["--outdir", str(tmp_path), *TINY, "--lr", "0.5"])
    assert other.exit_code == 1
    assert "other settings" in other.output


def test_ctrl_c_leaves_a_state_from_which_the_run_goes_on(tmp_path):
    code = "from edm_fast.cli.train import train; train()"
    command = [sys.executable, "-c", code, "--outdir", str(tmp_path), "--duration", "1000", "--batch", "8"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    shown = b""
    while b"loss=" not in shown:
        shown += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"the same command goes on" in error
    assert [item.name for item in tmp_path.iterdir()] == [STATE_NAME]


def test_options_reach_the_run(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(4):
        Image.new("RGB", (8, 8), (40 * index, 90, 200)).save(folder / f"{index}.png")
    (folder / "dataset.json").write_text(json.dumps({"labels": [[f"{index}.png", index % 2] for index in range(4)]}))
    arguments = ["--data", folder, "--outdir", tmp_path / "out", "--preset", "cifar10-ddpmpp", "--channels", 16,
                 "--batch", 4, "--micro-batch", 2, "--duration", 0.008, "--precond", "vp", "--lr", 0.01,
                 "--warmup", 0, "--decay", "cosine", "--ema", 1, "--ema", 2, "--power-ema", 0.1, "--dropout", 0.3,
                 "--augment", 0.4, "--dtype", "bfloat16", "--loss-scale", 2, "--seed", 9, "--snapshot", 0.004,
                 "--grid", 2, "--no-progress"]  # fmt: skip
    result = CliRunner().invoke(train, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    _, record = read_state(tmp_path / "out" / STATE_NAME)
    expected = {"batch": 4, "micro_batch": 2, "duration": 8, "precond": "vp", "lr": 0.01, "warmup": 0,
                "decay": "cosine", "ema": [1000, 2000], "power_ema": [0.1], "dropout": 0.3, "augment": 0.4,
                "dtype": "bfloat16", "loss_scale": 2.0, "seed": 9}  # fmt: skip
    assert {name: record["config"][name] for name in expected} == expected
    assert record["config"]["network"]["model_channels"] == 16
    assert len(list((tmp_path / "out").glob("samples-*.png"))) == 2
    net = edm_fast.load(tmp_path / "out" / NETWORK_NAME)
    assert (type(net).__name__, net.label_dim, net.img_channels) == ("VPPrecond", 2, 3)


def test_two_processes_train_as_one_does(tmp_path):
    """Up to the order of sums; and a run that they began goes on in one process."""
    common = ["--duration", "0.064", "--batch", "16", "--dropout", "0", "--seed", "4", "--no-progress"]
    one = CliRunner().invoke(train, ["--outdir", str(tmp_path / "one"), *common])
    assert one.exit_code == 0, one.output
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "edm_fast",
               "train", "--outdir", str(tmp_path / "two"), *common, "--micro-batch", "4"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    found, expected = (read_state(tmp_path / name / STATE_NAME)[0] for name in ("two", "one"))
    for name, tensor in expected.items():
        if name.startswith("net."):
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-5)
    records = [json.loads((tmp_path / name / LOG_NAME).read_text()) for name in ("one", "two")]
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], rel=1e-4)
    assert sum(row[1] for row in records[1]["loss_by_sigma"]) == 64


@pytest.mark.filterwarnings("error:.*_buffers")
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_holds_the_group_of_processes_when_it_is_destroyed(fails, monkeypatch, tmp_path):
    """Else torch destroys it later, holding the interpreter's lock, and one run in twenty never ended."""
    command = importlib.import_module("edm_fast.cli.train")
    alive = []

    @contextlib.contextmanager
    def world_of_one_process(device):
        store = distributed.FileStore(str(tmp_path / "store"), 1)
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            yield World(0, 2)
        finally:
            alive.extend(found for found in gc.get_objects() if type(found) is DistributedDataParallel)
            distributed.destroy_process_group()

    monkeypatch.setattr(command, "world_of_torchrun", world_of_one_process)
    made, plain = [], DistributedDataParallel.__init__

    @functools.wraps(plain)
    def noted(self, *given, **options):
        made.append(True)
        plain(self, *given, **options)

    def failing(*given, **options):
        raise ValueError("no more")

    monkeypatch.setattr(DistributedDataParallel, "__init__", noted)
    if fails:
        monkeypatch.setattr(command.Run, "go", failing)
    result = CliRunner().invoke(train, ["--outdir", str(tmp_path / "run"), *TINY])
    assert (result.exit_code != 0) is fails, result.output
    assert made
    assert alive == []
