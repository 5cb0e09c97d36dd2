"""`edm-fast train` from the outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from edm_fast.cli.train import train
from edm_fast.training.loop import NETWORK_NAME, STATE_NAME

TINY = ["--duration", "0.064", "--batch", "32", "--no-progress"]


def test_training_writes_a_network_and_a_second_run_changes_nothing(tmp_path):
    outdir = tmp_path / "new" / "run"
    result = CliRunner().invoke(train, ["--outdir", str(outdir), *TINY])
    assert result.exit_code == 0, result.output
    assert result.output.strip().endswith(str(outdir / NETWORK_NAME))
    assert sorted(item.name for item in outdir.iterdir()) == sorted([NETWORK_NAME, STATE_NAME])
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
        (["--data", "cats"], "--data"),
        (["--seed", "-1"], "--seed"),
        (["--decay", "steps"], "--decay"),
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
