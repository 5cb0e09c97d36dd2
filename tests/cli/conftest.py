"""A checkpoint for the commands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from generate_command import TINY

from edm_fast.checkpoints import save_network
from edm_fast.networks import EDMPrecond


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Of an untrained colour network without classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("net") / "tiny.safetensors"
    save_network(EDMPrecond(img_resolution=8, img_channels=3, **TINY), path)
    return path
