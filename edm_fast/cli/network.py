"""Checkpoints on the command line: a file, or an https URL that is downloaded because it was asked for."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import torch

from edm_fast.checkpoints import load, shipped_model
from edm_fast.checkpoints.download import download, is_url
from edm_fast.errors import CheckpointError
from edm_fast.networks import Precond


class NetworkFile(click.Path):
    """A readable file, as a path; for a URL the file in the download cache."""

    name = "file or url"

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False, readable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and is_url(value):
            try:
                value = download(value)
            except (ValueError, OSError) as error:
                self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)


def load_with_hash(network: Path | None, device: torch.device) -> tuple[Precond, str]:
    """The network on `device`, by default the shipped one, and the SHA-256 of its file; else a message and status 1."""
    try:
        with nullcontext(network) if network is not None else shipped_model() as path:
            return load(path, device=device), file_hash(path)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from None


def file_hash(path: Path) -> str:
    """SHA-256 in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def check_class(net: Precond, class_idx: int | None) -> None:
    """BadParameter for a class that the network does not have."""
    if class_idx is not None and class_idx >= net.label_dim:
        classes = f"{class_idx} is not one of the classes 0 to {net.label_dim - 1}"
        raise click.BadParameter(classes if net.label_dim else "the network is unconditional", param_hint="--class")
