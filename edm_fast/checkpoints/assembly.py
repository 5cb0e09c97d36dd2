"""A network built by our own constructors, with the weights of a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from edm_fast.checkpoints.arguments import build_network
from edm_fast.checkpoints.modules import StoredNetwork, check_attributes
from edm_fast.checkpoints.records import StoredTensor
from edm_fast.checkpoints.source import Source
from edm_fast.checkpoints.zip_reader import check_crc32
from edm_fast.errors import CheckpointError
from edm_fast.networks import Precond

WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# How much is copied before the memory of the mapped file is let go.
_PORTION = 8 * 2**20


def unfilled(network: StoredNetwork) -> Precond:
    """The network on the meta device, when keys, shapes, dtypes and attributes in the file are all what they should be.

    Raises CheckpointError if not, and ValueError for arguments of the caller's that build no network.
    """
    try:
        with torch.device("meta"):
            net = build_network(network.class_name, network.arguments, keys=len(network.state))
    except ValueError as error:
        if network.given:
            raise
        raise CheckpointError(str(error)) from error
    check_keys(net.state_dict(), network.state)
    check_attributes(network, net)
    return net


def check_keys(expected: Mapping[str, Tensor], found: Mapping[str, StoredTensor]) -> None:
    """CheckpointError unless keys and shapes are the network's, and the dtypes those of weights."""
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    if missing or unexpected:
        raise CheckpointError(
            f"keys do not match the network: {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {[key[:80] for key in unexpected[:3]]}"
        )
    for name, tensor in expected.items():
        if list(tensor.shape) != list(found[name].shape):
            raise CheckpointError(f"{name} has shape {list(found[name].shape)}, but it must be {list(tensor.shape)}")
        if found[name].dtype not in WEIGHT_DTYPES:
            raise CheckpointError(f"{name} is {found[name].dtype}, not float16, bfloat16 or float32")


def assemble(
    network: StoredNetwork,
    source: Source,
    device: torch.device | str,
    verify: Callable[[], None] = lambda: None,
) -> Precond:
    """The network with its weights, float32 copies on `device` that require no gradient, in eval mode.

    Takes `network` apart on the way, so that the memory of the file can be let go piece by piece. `verify` is
    called before anything is copied, when all else is right. Raises what `unfilled` and `verify` do.
    """
    net = unfilled(network)
    network.attributes.clear()
    total = sum(tensor.extent_bytes for tensor in network.state.values())
    if total > len(source.data):
        raise CheckpointError(f"the weights take {total} bytes, more than the file: they lie over one another")
    verify()
    source.forget()
    weights, copied = {}, 0
    for name in list(network.state):
        tensor = network.state.pop(name)
        storage = tensor.storage
        if storage.crc32 is not None and storage.data is not None:
            check_crc32(name, storage.data, storage.crc32)
            storage.crc32 = None
        weights[name] = tensor.copy(device, torch.float32)
        copied += tensor.extent_bytes
        if copied > _PORTION:
            source.forget()
            copied = 0
    source.forget()
    net.load_state_dict(weights, assign=True)
    return net.eval().requires_grad_(False)
