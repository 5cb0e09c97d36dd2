"""Our own checkpoint: a safetensors file that also says how to build the network.

Weights lie in the file as safetensors does it. The metadata hold `format` = 'edm_fast', `version`, `class` (a
preconditioning), `init_kwargs` (its constructor arguments as JSON), `crc32` of the weights, and optionally `card`, free
text, and entries of the caller's, which loading passes over. Loading runs nothing from the file: the class comes from a
table, the arguments are checked one by one, and keys and shapes must match the network that they build.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from typing import Any

import torch

from edm_fast.checkpoints.arguments import CLASSES, check_argument
from edm_fast.checkpoints.assembly import WEIGHT_DTYPES, assemble
from edm_fast.checkpoints.modules import StoredNetwork
from edm_fast.checkpoints.payload import write_safetensors
from edm_fast.checkpoints.records import StoredTensor
from edm_fast.checkpoints.safetensors_reader import read_safetensors
from edm_fast.checkpoints.source import Source
from edm_fast.errors import CheckpointError
from edm_fast.networks import Precond

FORMAT = "edm_fast"
VERSION = 1


def save_network(
    net: Precond,
    path: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    card: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a preconditioned network to a safetensors file; a reader sees the old file or the whole new one.

    Args:
        net: an instance of a class in the table, on any device.
        path: the file to write or replace.
        dtype: of the parameters in the file: torch.float16, bfloat16 or float32; None keeps theirs. Buffers (noise
            levels, Fourier frequencies, filters) stay as they are, since they are constants and not weights.
        card: free text to store with the weights.
        metadata: further entries of the header, under names that are not the format's own.

    Raises TypeError for another kind of network or dtype, ValueError for arguments that could not be read back.
    """
    class_name = type(net).__name__
    if CLASSES.get(class_name) is not type(net):
        raise TypeError(f"net must be one of {', '.join(CLASSES)}, but it is a {class_name}")
    taken = sorted({"format", "version", "class", "init_kwargs", "crc32", "card"} & set(metadata or {}))
    if taken:
        raise ValueError(f"metadata must not have the format's own names, but it has {', '.join(taken)}")
    if dtype is not None and dtype not in WEIGHT_DTYPES:
        raise TypeError(f"dtype must be float16, bfloat16, float32 or None, but it is {dtype}")
    for name, value in net.init_kwargs.items():
        check_argument(name, value)
    parameters = {name for name, _ in net.named_parameters()}
    tensors = {}
    for name, tensor in net.state_dict().items():
        stored = dtype if dtype is not None and name in parameters else tensor.dtype
        if stored not in WEIGHT_DTYPES:
            raise TypeError(f"net must have float16, bfloat16 or float32 weights, but {name} is {stored}")
        tensors[name] = tensor.detach().to("cpu", stored).contiguous()
    # JSON has no infinity; a string that float() understands stands for it.
    arguments = {
        name: "inf" if isinstance(value, float) and math.isinf(value) else value
        for name, value in net.init_kwargs.items()
    }
    header = {
        **(metadata or {}),
        "format": FORMAT,
        "version": str(VERSION),
        "class": class_name,
        "init_kwargs": json.dumps(arguments, allow_nan=False),
    }
    if card is not None:
        header["card"] = card
    write_safetensors(path, tensors, header)


def read_arguments(metadata: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """Return (class name, constructor arguments) from the metadata of an edm_fast file."""
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"not an edm_fast checkpoint: metadata format is {metadata.get('format')!r}")
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(f"version {metadata.get('version')!r} is not {VERSION}, the one this reads")
    try:
        arguments = json.loads(metadata["init_kwargs"])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"metadata init_kwargs is missing or no JSON ({error})") from error
    if not isinstance(arguments, dict):
        raise CheckpointError(f"metadata init_kwargs must be an object, but it is {type(arguments).__name__}")
    if arguments.get("sigma_max") == "inf":
        arguments["sigma_max"] = math.inf
    return metadata.get("class", ""), arguments


def stored_native(metadata: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> StoredNetwork:
    """The network in a file of ours, its checksum not checked yet; CheckpointError for other safetensors files."""
    class_name, arguments = read_arguments(metadata)
    return StoredNetwork(class_name, arguments, dict(tensors))


def read_native(source: Source, device: str | torch.device) -> Precond:
    """The network in a source that holds a file of ours; errors as of `load_network`."""
    try:
        metadata, tensors = read_safetensors(source.data)
        network = stored_native(metadata, tensors)
        return assemble(network, source, device, lambda: _check_checksum(metadata, tensors))
    except CheckpointError as error:
        raise CheckpointError(f"{source.name}: {error}") from error


def _check_checksum(metadata: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> None:
    """CheckpointError unless `payload.checksum` gives what was recorded."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].storage.data or b"", zlib.crc32(name.encode(), value))
    if f"{value:08x}" != metadata.get("crc32"):
        raise CheckpointError("damaged: the weights do not have the checksum in the metadata")


def load_network(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Precond:
    """Read a network that `save_network` wrote.

    Returns it in eval mode with float32 weights that require no gradient, on `device`. The weights are copies: the
    file may be replaced or removed afterwards.

    Raises CheckpointError, naming the file and what is wrong, for a truncated, damaged or foreign file, an unknown
    class, bad arguments, and keys or shapes that are not the network's; OSError when the file cannot be opened.
    """
    return read_native(Source(path), device)
