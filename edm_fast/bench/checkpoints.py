"""Opening a network's file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

import edm_fast
from edm_fast.bench.registry import Entry
from edm_fast.bench.turns import Case, Peer
from edm_fast.checkpoints import save_network
from edm_fast.networks import EDMPrecond, Precond
from edm_fast.training.presets import preset


def entries() -> Iterator[Entry]:
    yield Entry("checkpoint", "digits (shipped), 1 MB", lambda: load_case(edm_fast.load()), True)
    yield Entry("checkpoint", "CIFAR-10 DDPM++, 223 MB", lambda: load_case(cifar10_ddpmpp()))


def cifar10_ddpmpp() -> EDMPrecond:
    """Unconditional, with random weights."""
    return EDMPrecond(32, 3, **preset("cifar10-ddpmpp").network)


def load_case(net: Precond) -> Case:
    """From a file to a network. The peers build the same network and fill it from a file of its state alone."""
    folder = tempfile.TemporaryDirectory()
    native, weights = Path(folder.name) / "net.safetensors", Path(folder.name) / "net.pt"
    save_network(net, native)
    torch.save(net.state_dict(), weights)

    def built(state: dict[str, Tensor]) -> Precond:
        made = type(net)(**net.init_kwargs)
        made.load_state_dict(state)
        return made.eval()

    def ours() -> torch.nn.Module:
        assert folder  # the folder lives as long as the case
        return edm_fast.load(native)

    def flat(network: torch.nn.Module) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in network.state_dict().values()])

    runs = {
        "torch.load, load_state_dict": lambda: built(torch.load(weights, weights_only=True)),
        "safetensors, load_state_dict": lambda: built(load_file(native)),
    }
    peers = {name: Peer(run, lambda run=run: flat(run())) for name, run in runs.items()}  # type: ignore[misc]
    return Case(ours, lambda: flat(ours()), lambda: flat(net), 0.0, peers, net_bytes(net), most_rounds=9)


def net_bytes(net: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in net.state_dict().values())
