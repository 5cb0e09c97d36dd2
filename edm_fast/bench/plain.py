"""The shipped model in plain PyTorch: `edm_fast.load` gives a network of fused ops, which would be no peer."""

from __future__ import annotations

import torch

import edm_fast
from edm_fast.reference.preconditioning import EDMPrecond


def plain_digits(memory_format: torch.memory_format = torch.contiguous_format) -> EDMPrecond:
    """The network of `edm_fast.reference` with the shipped weights, for evaluation."""
    shipped = edm_fast.load()
    net = EDMPrecond(**shipped.init_kwargs)
    net.load_state_dict(shipped.state_dict())
    net.to(memory_format=memory_format)  # type: ignore[call-overload]
    return net.eval().requires_grad_(False)
