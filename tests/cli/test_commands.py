"""info, selfcheck, help and the two ways to start the program."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

import edm_fast
from edm_fast.cli import main
from edm_fast.ops import backends


def run(*arguments, expect=0):
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == expect, result.output
    return result.output


def test_python_m_starts_from_any_directory(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "edm_fast", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert edm_fast.__version__ in result.stdout


def test_help_lists_the_commands():
    for command in ("generate", "evaluate", "train", "reconstruct-ema", "convert", "info", "selfcheck"):
        assert command in run("--help")
        assert "--help" in run(command, "--help")


def test_info_names_the_backend_and_the_reason():
    output = run("info")
    assert edm_fast.__version__ in output
    assert backends.extension().cpu.isa() in output
    assert "default device" in output
    if not torch.cuda.is_available():
        assert "not usable" in output


def test_a_cuda_device_that_cannot_be_used_says_why():
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    output = run("selfcheck", "--device", "cuda", expect=2)
    assert "cannot be used" in output


def test_selfcheck_passes():
    output = run("selfcheck", "--device", "cpu")
    assert "all passed" in output
    assert "FAIL" not in output


def test_selfcheck_catches_a_broken_solver(monkeypatch):
    """The second-order correction left out of Heun's method."""
    from edm_fast.samplers import solvers

    monkeypatch.setattr(solvers, "KEPT", (0 * solvers.KEPT[0] + solvers.X,))
    output = run("selfcheck", "--device", "cpu", expect=1)
    failed = [line.split("  ")[0] for line in output.splitlines() if "FAIL" in line]
    assert failed == ["heun", "heun, alpha=0.75", "heun, vp levels", "heun, ve levels", "marginal std under churn"]


def test_selfcheck_catches_broken_noise(monkeypatch):
    from edm_fast import selfcheck

    monkeypatch.setattr(selfcheck, "reference_randn", lambda *_: torch.zeros(4, 3, 33, 31))
    output = run("selfcheck", "--device", "cpu", expect=1)
    assert "elements differ" in output
