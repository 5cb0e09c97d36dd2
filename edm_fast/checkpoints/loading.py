"""`edm_fast.load`: any checkpoint of an EDM network, as a network of ours."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from edm_fast.checkpoints.assembly import assemble
from edm_fast.checkpoints.contents import choose_entry, network_of, read_contents
from edm_fast.checkpoints.native import FORMAT, read_native
from edm_fast.checkpoints.safetensors_reader import is_safetensors, read_safetensors
from edm_fast.checkpoints.source import PathOrFile, Source
from edm_fast.errors import CheckpointError
from edm_fast.networks import Precond
from edm_fast.ops.backends import usable_device

_COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def shipped_model() -> AbstractContextManager[Path]:
    """The path of the checkpoint that ships with the package, for the time of a `with` block."""
    return resources.as_file(resources.files("edm_fast") / "models" / "digits.safetensors")


def load(
    path: PathOrFile | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    entry: str | None = None,
    class_name: str | None = None,
    init_kwargs: Mapping[str, Any] | None = None,
) -> Precond:
    """A network ready to sample: in eval mode, with float32 weights that require no gradient.

    Opens EDM's pickles and training states, files of torch.save, and safetensors files. Nothing in the file is run and
    nothing is imported because the file says so: it is read by an interpreter of its own, the network is built by our
    constructors from the arguments that the file recorded, and every key and shape must then match. The weights are
    copies: the file may be replaced or removed afterwards.

    Args:
        path: the file, or a file open for reading bytes, read from its position to its end; without it the shipped
            model of handwritten digits (8x8 grey images, 10 classes; see edm_fast/models/digits.md).
        device: where the network goes.
        dtype: what the network computes in, its `compute_dtype`: float32, float16 or bfloat16; None is EDM's rule,
            float16 on CUDA where the checkpoint says `use_fp16`, else float32.
        entry: which of the file's entries; by default `ema`, in training states `net`.
        class_name: for files that hold a state dict and nothing else, the class it is of: 'EDMPrecond', 'VPPrecond',
            'VEPrecond' or 'iDDPMPrecond'.
        init_kwargs: for such files, the arguments of the class's constructor.

    Raises:
        CheckpointError: the file is truncated, damaged or hostile, of another kind, or does not fit the arguments it
            recorded; the message says what and where.
        ValueError, TypeError: an argument is not one of those above; an entry that the file does not have; class_name
            and init_kwargs missing, given in vain, or building no network.
        RuntimeError: a CUDA device that cannot be used; says why.
        OSError: the file cannot be read.
    """
    if dtype is not None and dtype not in _COMPUTE_DTYPES:
        raise TypeError(f"dtype must be float32, float16, bfloat16 or None, but it is {dtype!r}")
    device = usable_device("device", device)
    if path is None:
        with shipped_model() as shipped:
            return load(shipped, device, dtype, entry=entry, class_name=class_name, init_kwargs=init_kwargs)
    source = Source(path)
    if _is_native(source.data):
        if not (entry is class_name is init_kwargs is None):
            raise ValueError(f"entry, class_name and init_kwargs are not for {source.name}, a checkpoint of edm_fast")
        net = read_native(source, device)
    else:
        net = _load_foreign(source, device, entry, class_name, init_kwargs)
    net.compute_dtype = dtype
    return net


def _is_native(data: memoryview) -> bool:
    """Whether this is a safetensors file of ours, or was one before it was damaged."""
    if not is_safetensors(data):
        return False
    try:
        return read_safetensors(data)[0].get("format") == FORMAT
    except CheckpointError:
        return True


def _load_foreign(
    source: Source,
    device: torch.device | str,
    entry: str | None,
    class_name: str | None,
    init_kwargs: Mapping[str, Any] | None,
) -> Precond:
    name = source.name
    try:
        contents = read_contents(source.data, source.forget)
        chosen, value = choose_entry(contents, entry)
        name = f"{source.name}: {chosen}"
        network = network_of(value, class_name, init_kwargs)
        del contents, value  # what was made of the file is let go with each tensor that is copied
        return assemble(network, source, device)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
