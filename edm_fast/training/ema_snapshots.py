"""Power-function averages as files: checkpoints of ours that also say their width and the images seen."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edm_fast.checkpoints.native import load_network, read_arguments, save_network
from edm_fast.checkpoints.safetensors_reader import read_safetensors
from edm_fast.checkpoints.source import Source
from edm_fast.errors import CheckpointError
from edm_fast.networks import Precond
from edm_fast.training.power_ema import PowerEMA, check_sigma_rel

_KEY = "power_ema"


@dataclass(frozen=True)
class Snapshot:
    """An average of relative width `sigma_rel` after `images_seen` images; `load` gives the network.

    `name` is for messages; snapshots of one run have equal `architecture`, the class and constructor arguments.
    """

    name: str
    sigma_rel: float
    images_seen: int
    architecture: Any
    load: Callable[[], nn.Module]


def save_snapshots(
    ema: PowerEMA[Precond],
    folder: str | os.PathLike[str],
    images_seen: int,
    dtype: torch.dtype = torch.float16,
) -> list[Path]:
    """Write each average to `folder`, which must exist, as power-ema-IMAGES-WIDTH.safetensors; return the paths.

    The files are checkpoints that `edm_fast.load` opens. `dtype` is that of the weights. float16 halves the files; to
    combine snapshots into a width between the tracked ones, or a larger one, does not amplify its rounding, but
    to much smaller ones does: float32 is for those.
    """
    paths = []
    for net, sigma_rel in zip(ema.nets, ema.sigma_rels, strict=True):
        path = Path(folder) / f"power-ema-{images_seen:010d}-{sigma_rel:g}.safetensors"
        record = json.dumps({"sigma_rel": sigma_rel, "images_seen": images_seen})
        save_network(net, path, dtype=dtype, metadata={_KEY: record})
        paths.append(path)
    return paths


def read_snapshot(path: str | os.PathLike[str]) -> Snapshot:
    """What a file of `save_snapshots` says of itself; its weights are read by `load`.

    Raises CheckpointError, naming the file, when it is damaged or no such file, OSError when it cannot be opened.
    """
    source = Source(path)
    try:
        metadata, _ = read_safetensors(source.data)
        architecture = read_arguments(metadata)
        sigma_rel, images_seen = _record(metadata)
    except CheckpointError as error:
        raise CheckpointError(f"{source.name}: {error}") from error
    return Snapshot(source.name, sigma_rel, images_seen, architecture, lambda: load_network(path))


def _record(metadata: Mapping[str, str]) -> tuple[float, int]:
    if _KEY not in metadata:
        raise CheckpointError("a network, but no snapshot of a power-function average")
    try:
        record = json.loads(metadata[_KEY])
        sigma_rel, images_seen = record["sigma_rel"], record["images_seen"]
        if type(sigma_rel) is not float or type(images_seen) is not int or not 0 < images_seen < 2**63:
            raise ValueError(f"sigma_rel {sigma_rel!r}, images_seen {images_seen!r}")
        check_sigma_rel(sigma_rel)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"damaged: metadata {_KEY} is no width and number of images: {error}") from error
    return sigma_rel, images_seen
