"""Our own checkpoint: a safetensors file that also says how to build the network.

Weights lie in the file as safetensors does it. The metadata hold `format` = 'edm_fast', `version`, `class` (a
preconditioning), `init_kwargs` (its constructor arguments as JSON), `crc32` of the weights, and optionally `card`, free
text. Loading runs nothing from the file: the class comes from a table, the arguments are checked one by one, and keys
and shapes must match the network that they build.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edm_fast.checkpoints.payload import checksum, write_safetensors
from edm_fast.errors import CheckpointError
from edm_fast.networks import EDMPrecond, Precond, VEPrecond, VPPrecond, iDDPMPrecond

FORMAT = "edm_fast"
VERSION = 1
CLASSES: dict[str, type[Precond]] = {
    "EDMPrecond": EDMPrecond,
    "VEPrecond": VEPrecond,
    "VPPrecond": VPPrecond,
    "iDDPMPrecond": iDDPMPrecond,
}

# A header of the largest networks is under 100 KB; a hostile one must not cost memory before it is refused.
_MAX_HEADER_BYTES = 8 * 2**20
_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# What each recorded argument may be. The bounds are far above any real network, and low enough that building one on
# the meta device takes neither noticeable time nor memory.
_INTEGERS = {
    "img_resolution": (1, 16384),
    "img_channels": (1, 4096),
    "label_dim": (0, 1_000_000),
    "M": (2, 10_000),
    "augment_dim": (0, 4096),
    "model_channels": (1, 16384),
    "channel_mult_emb": (1, 64),
    "channel_mult_noise": (1, 64),
    "num_blocks": (0, 64),
}
_NUMBERS = {
    "beta_d",
    "beta_min",
    "epsilon_t",
    "C_1",
    "C_2",
    "sigma_data",
    "sigma_min",
    "sigma_max",
    "dropout",
    "label_dropout",
}
_LISTS = {"channel_mult": (1, 16), "attn_resolutions": (0, 16), "resample_filter": (1, 64)}
_STRINGS = {"model_type", "embedding_type", "encoder_type", "decoder_type"}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _check_argument(name: str, value: Any) -> None:
    if name in _INTEGERS:
        low, high = _INTEGERS[name]
        wanted = f"an integer from {low} to {high}"
        good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    elif name in _NUMBERS:
        wanted = "a number from 0 up" + ("" if name == "sigma_max" else ", finite")
        good = _is_number(value) and value >= 0 and (math.isfinite(value) or name == "sigma_max")
    elif name in _LISTS:
        low, high = _LISTS[name]
        wanted = f"a list of {low} to {high} numbers from 0 to 16384"
        good = isinstance(value, list) and low <= len(value) <= high
        good = good and all(_is_number(item) and 0 <= item <= 16384 for item in value)
        if name != "resample_filter":
            good = good and all(isinstance(item, int) for item in value)
    elif name in _STRINGS:
        wanted = "a string"
        good = isinstance(value, str)
    elif name == "use_fp16":
        wanted = "true or false"
        good = isinstance(value, bool)
    else:
        raise ValueError(f"init_kwargs holds an unknown argument {str(name)[:80]!r}")
    if not good:
        raise ValueError(f"init_kwargs: {name} must be {wanted}, but it is {str(value)[:80]}")


def build_network(class_name: str, init_kwargs: Mapping[str, Any]) -> Precond:
    """Build an untrained network of a class in the table from recorded constructor arguments.

    Under `torch.device('meta')` this allocates nothing. Raises ValueError for an unknown class, an argument that is
    unknown, missing, of the wrong type or out of bounds.
    """
    if class_name not in CLASSES:
        raise ValueError(f"class must be one of {', '.join(CLASSES)}, but it is {class_name[:80]!r}")
    for name, value in init_kwargs.items():
        _check_argument(name, value)
    try:
        return CLASSES[class_name](**init_kwargs)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"init_kwargs do not build a {class_name}: {error}") from error


def save_network(
    net: Precond, path: str | os.PathLike[str], dtype: torch.dtype | None = None, card: str | None = None
) -> None:
    """Write a preconditioned network to a safetensors file; a reader sees the old file or the whole new one.

    Args:
        net: an instance of a class in the table, on any device.
        path: the file to write or replace.
        dtype: of the parameters in the file: torch.float16, bfloat16 or float32; None keeps theirs. Buffers (noise
            levels, Fourier frequencies, filters) stay as they are, since they are constants and not weights.
        card: free text to store with the weights.

    Raises TypeError for another kind of network or dtype, ValueError for arguments that could not be read back.
    """
    class_name = type(net).__name__
    if CLASSES.get(class_name) is not type(net):
        raise TypeError(f"net must be one of {', '.join(CLASSES)}, but it is a {class_name}")
    if dtype is not None and dtype not in _WEIGHT_DTYPES:
        raise TypeError(f"dtype must be float16, bfloat16, float32 or None, but it is {dtype}")
    for name, value in net.init_kwargs.items():
        _check_argument(name, value)
    parameters = {name for name, _ in net.named_parameters()}
    tensors = {}
    for name, tensor in net.state_dict().items():
        stored = dtype if dtype is not None and name in parameters else tensor.dtype
        if stored not in _WEIGHT_DTYPES:
            raise TypeError(f"net must have float16, bfloat16 or float32 weights, but {name} is {stored}")
        tensors[name] = tensor.detach().to("cpu", stored).contiguous()
    # JSON has no infinity; a string that float() understands stands for it.
    arguments = {
        name: "inf" if isinstance(value, float) and math.isinf(value) else value
        for name, value in net.init_kwargs.items()
    }
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "class": class_name,
        "init_kwargs": json.dumps(arguments, allow_nan=False),
    }
    if card is not None:
        metadata["card"] = card
    write_safetensors(path, tensors, metadata)


def _check_header(path: Path) -> None:
    """Refuse files whose first bytes cannot be safetensors, before anything of their claimed size is allocated."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) < 9:
        raise CheckpointError(f"{path}: truncated: {size} bytes are fewer than the header of a safetensors file")
    length = int.from_bytes(start[:8], "little")
    if start[8:9] != b"{" or length > _MAX_HEADER_BYTES:
        raise CheckpointError(f"{path}: not a safetensors file (its first 9 bytes are {start!r})")
    if 8 + length > size:
        raise CheckpointError(f"{path}: truncated: the header claims {length} bytes, but the file has {size}")


def _read_arguments(path: Path, metadata: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """Return (class name, constructor arguments) from the metadata of an edm_fast file."""
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not an edm_fast checkpoint: metadata format is {metadata.get('format')!r}")
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(f"{path}: version {metadata.get('version')!r} is not {VERSION}, the one this reads")
    try:
        arguments = json.loads(metadata["init_kwargs"])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: metadata init_kwargs is missing or no JSON ({error})") from error
    if not isinstance(arguments, dict):
        raise CheckpointError(f"{path}: metadata init_kwargs must be an object, but it is {type(arguments).__name__}")
    if arguments.get("sigma_max") == "inf":
        arguments["sigma_max"] = math.inf
    return metadata.get("class", ""), arguments


def _check_tensors(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, list[int]]) -> None:
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    if missing or unexpected:
        raise CheckpointError(
            f"{path}: keys do not match the network: {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {[key[:80] for key in unexpected[:3]]}"
        )
    for name, tensor in expected.items():
        if list(tensor.shape) != found[name]:
            raise CheckpointError(f"{path}: {name} has shape {found[name]}, but it must be {list(tensor.shape)}")


def load_network(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Precond:
    """Read a network that `save_network` wrote.

    Returns it in eval mode with float32 weights that require no gradient, on `device`. The weights are copies: the
    file may be replaced or removed afterwards.

    Raises CheckpointError, naming the file and what is wrong, for a truncated, damaged or foreign file, an unknown
    class, bad arguments, and keys or shapes that are not the network's; OSError when the file cannot be opened.
    """
    path = Path(path)
    _check_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            class_name, arguments = _read_arguments(path, file.metadata() or {})
            try:
                with torch.device("meta"):
                    net = build_network(class_name, arguments)
            except ValueError as error:
                raise CheckpointError(f"{path}: {error}") from error
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _check_tensors(path, net.state_dict(), shapes)
            tensors = {name: file.get_tensor(name) for name in shapes}
            for name, tensor in tensors.items():
                if tensor.dtype not in _WEIGHT_DTYPES:
                    raise CheckpointError(f"{path}: {name} is {tensor.dtype}, not float16, bfloat16 or float32")
            if checksum(tensors) != (file.metadata() or {}).get("crc32"):
                raise CheckpointError(f"{path}: damaged: the weights do not have the checksum in the metadata")
            weights = {name: tensor.to(device, torch.float32, copy=True) for name, tensor in tensors.items()}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: truncated or damaged safetensors file: {error}") from error
    net.load_state_dict(weights, assign=True)
    return net.eval().requires_grad_(False)
