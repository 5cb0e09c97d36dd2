"""A foreign EDM network as ours: the same function and weights, by fused ops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from edm_fast.networks.architecture import OWN_OPTIONS, PRECONDITIONINGS, constructor_arguments
from edm_fast.networks.preconditioning import Precond

# What changes a network's function and shows in no key of its state dict.
_PART_ATTRIBUTES = (
    *("num_heads", "skip_scale", "adaptive_scale", "eps", "num_groups"),
    *("up", "down", "fused_resample", "num_channels", "max_positions", "endpoint"),
)
_NET_ATTRIBUTES = ("img_resolution", "img_channels", "label_dim", "sigma_min", "sigma_max")
_MODEL_TYPES = tuple(Precond.model_types)


def accelerate(module: nn.Module) -> Precond:
    """Return `module`, an EDM preconditioning around a U-Net, as a network of this library with a copy of its weights.

    What the module is follows from the names of its class and of its `model`'s, from the constructor arguments that it
    recorded (`_init_args` and `_init_kwargs`, as EDM's persistence keeps them) or else from its attributes and its
    state dict. Its package is not imported. Device, dtypes, training mode and what requires gradients are the module's;
    a network of `edm_fast.networks` is returned as it is.

    Raises ValueError for anything else, and says what differs: the class, keys, shapes or attributes.
    """
    if isinstance(module, Precond):
        return module
    name, model = type(module).__name__, getattr(module, "model", None)
    if not isinstance(module, nn.Module) or name not in PRECONDITIONINGS or not isinstance(model, nn.Module):
        raise ValueError(f"module: got a {name}; it is one of {', '.join(PRECONDITIONINGS)} with a U-Net as .model")
    if type(model).__name__ not in _MODEL_TYPES:
        raise ValueError(f"module: its .model is a {type(model).__name__}; it is one of {', '.join(_MODEL_TYPES)}")
    state = {key: tensor.detach().clone() for key, tensor in module.state_dict().items()}
    arguments = constructor_arguments(module, state)
    try:
        with torch.device("meta"):
            ours = PRECONDITIONINGS[name](**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"module: no {name} is built from its arguments {arguments}: {error}") from error
    _compare_states(state, ours.state_dict())
    _compare_attributes(module, ours, name)
    ours.load_state_dict(state, assign=True)
    for key, parameter in module.named_parameters():
        ours.get_parameter(key).requires_grad_(parameter.requires_grad)
    # Dropout may have been changed after construction; it has no place in the arguments of single blocks.
    for key, part in ours.named_modules():
        theirs = module.get_submodule(key)
        part.training = theirs.training
        if hasattr(part, "dropout") and hasattr(theirs, "dropout"):
            part.dropout = theirs.dropout
    return ours


def _compare_states(theirs: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor]) -> None:
    """ValueError unless keys and shapes are the same."""
    shapes = [
        f"{key} {list(theirs[key].shape)} for {list(tensor.shape)}"
        for key, tensor in ours.items()
        if key in theirs and theirs[key].shape != tensor.shape
    ]
    missing, unexpected = [key for key in ours if key not in theirs], [key for key in theirs if key not in ours]
    for what, differing in (("missing keys", missing), ("unexpected keys", unexpected), ("shapes", shapes)):
        if differing:
            raise ValueError(f"module: its state dict is another network's; {what}: {_some(differing)}")


def _compare_attributes(theirs: nn.Module, ours: nn.Module, name: str) -> None:
    """ValueError where an attribute that both have differs."""
    differing = _differences(theirs, ours, (*_NET_ATTRIBUTES, *OWN_OPTIONS[name]), "")
    parts = dict(theirs.named_modules())
    for key, part in ours.named_modules():
        if key not in parts:
            differing.append(f"{key} is missing")
        elif key:
            differing += _differences(parts[key], part, _PART_ATTRIBUTES, f"{key}.")
    if differing:
        raise ValueError(f"module: it computes something else; attributes: {_some(differing)}")


def _differences(theirs: Any, ours: Any, names: tuple[str, ...], prefix: str) -> list[str]:
    return [
        f"{prefix}{name} is {getattr(theirs, name)!r}, not {getattr(ours, name)!r}"
        for name in names
        if hasattr(theirs, name) and hasattr(ours, name) and getattr(theirs, name) != getattr(ours, name)
    ]


def _some(items: list[str]) -> str:
    rest = f" and {len(items) - 4} more" if len(items) > 4 else ""
    return ", ".join(items[:4]) + rest
