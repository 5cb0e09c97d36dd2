"""The full state of a training run in one file: weights, average, optimiser, random numbers, position.

It is a safetensors file, so reading it runs nothing; the settings and counters are JSON in its metadata, with a
checksum of the tensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from edm_fast.checkpoints.payload import checksum, write_safetensors
from edm_fast.errors import CheckpointError

FORMAT = "edm_fast training state"
VERSION = "1"


def write_state(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able record; a reader sees the old file or the whole new one."""
    stored = {name: tensor.detach().to("cpu").clone().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "version": VERSION, "record": json.dumps(record)}
    write_safetensors(path, stored, metadata)


def read_state(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (tensors, record) as `write_state` got them.

    Raises CheckpointError, naming the file, when it is truncated, damaged or something else.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
                raise CheckpointError(f"{path}: not a training state that this version reads")
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: truncated or damaged training state: {error}") from error
    if checksum(tensors) != metadata.get("crc32"):
        raise CheckpointError(f"{path}: damaged training state: the tensors do not have the recorded checksum")
    try:
        record = json.loads(metadata.get("record", ""))
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged training state: its record is no JSON ({error})") from error
    return tensors, record
