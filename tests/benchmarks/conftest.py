"""Measurements for a GPU on the CPU: tiny networks, and a clock that says one second each time."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from edm_fast.reference import unet_block

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = {
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 4,
    "model_type": "SongUNet",
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
PRESETS = {
    "ddpmpp": TINY,
    "ncsnpp": {**TINY, "embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]},
    "adm": {**TINY, "model_type": "DhariwalUNet", "model_channels": 32},
}


def one_second(function: Callable[[], object]) -> float:
    function()
    return 1.0


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Modules of the benchmarks by name, with tiny networks."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(importlib.import_module("variants"), "PRESETS", PRESETS)
    monkeypatch.setattr(importlib.import_module("count_cuda"), "PRESETS", PRESETS)
    return importlib.import_module


@pytest.fixture
def run(load: Callable[[str], ModuleType], tmp_path: Path) -> Any:
    return load("gpu_run").Run(torch.device("cpu"), tmp_path / "gpu.json", tmp_path, 5, 1, one_second)


@pytest.fixture
def kept(run: Any) -> Callable[[str], dict[str, Any]]:
    """The entries of a row of the run's file."""
    return lambda row: json.loads(run.output.read_text())["rows"][row]


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """In place of torch.compile: the module itself, and at each call what was asked for."""
    asked: list[dict[str, Any]] = []

    def compile(module: Any, **options: Any) -> Callable[..., Any]:
        def compiled(*args: Any) -> Any:
            asked.append({**options, "attention": unet_block.self_attention})
            return module(*args)

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    return asked
