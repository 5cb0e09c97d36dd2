"""Checkpoints: opening them runs none of their code."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path

import torch

from edm_fast.checkpoints.native import load_network, save_network
from edm_fast.networks import Precond

__all__ = ["load", "load_network", "save_network", "shipped_model"]


def shipped_model() -> AbstractContextManager[Path]:
    """The path of the checkpoint that ships with the package, for the time of a `with` block."""
    return resources.as_file(resources.files("edm_fast") / "models" / "digits.safetensors")


def load(path: str | os.PathLike[str] | None = None, device: torch.device | str = "cpu") -> Precond:
    """A network ready to sample: in eval mode, float32, without gradients.

    Args:
        path: a safetensors file written by this library; without it the shipped model of handwritten digits (8x8 grey
            images, 10 classes; see edm_fast/models/digits.md).
        device: where the network goes.

    Raises:
        CheckpointError: the file is damaged or of another kind; the message says what and where.
        OSError: it cannot be read.
    """
    if path is not None:
        return load_network(path, device=device)
    with shipped_model() as shipped:
        return load_network(shipped, device=device)
