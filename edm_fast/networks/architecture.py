"""The constructor arguments of an EDM network: as it recorded them, or read off its attributes and its state dict."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from edm_fast.networks.preconditioning import EDMPrecond, Precond, VEPrecond, VPPrecond, iDDPMPrecond

PRECONDITIONINGS: dict[str, type[Precond]] = {
    precond.__name__: precond for precond in (VPPrecond, VEPrecond, iDDPMPrecond, EDMPrecond)
}
# Attributes that each class keeps under the names of its arguments.
OWN_OPTIONS = {
    "VPPrecond": ("beta_d", "beta_min", "M", "epsilon_t"),
    "VEPrecond": ("sigma_min", "sigma_max"),
    "iDDPMPrecond": ("C_1", "C_2", "M"),
    "EDMPrecond": ("sigma_min", "sigma_max", "sigma_data"),
}


def constructor_arguments(module: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Keyword arguments with which the class of `module`'s name builds it; ValueError if they cannot be told."""
    recorded = _recorded(module)
    return recorded if recorded is not None else _inferred(module, state)


def _recorded(module: nn.Module) -> dict[str, Any] | None:
    """What EDM's persistence, or our own class, kept at construction."""
    options = getattr(module, "_init_kwargs", getattr(module, "init_kwargs", None))
    if not isinstance(options, Mapping):
        return None
    values = getattr(module, "_init_args", getattr(module, "init_args", ()))
    signature = inspect.signature(PRECONDITIONINGS[type(module).__name__])
    names = [name for name, kind in signature.parameters.items() if kind.kind is not inspect.Parameter.VAR_KEYWORD]
    if not isinstance(values, Sequence) or len(values) > len(names):
        raise ValueError(f"module: its {type(module).__name__} recorded {values!r}; {len(names)} arguments are known")
    return {**dict(zip(names, values, strict=False)), **options}


def _inferred(module: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    name = type(module).__name__
    arguments: dict[str, Any] = {}
    for option in OWN_OPTIONS[name]:
        if not hasattr(module, option):
            raise ValueError(f"module: this {name} has neither recorded arguments nor the attribute {option}")
        arguments[option] = getattr(module, option)
    network = _network(state, type(module.model).__name__)
    arguments["img_channels"] = network.pop("in_channels")
    arguments["use_fp16"] = bool(getattr(module, "use_fp16", False))
    blocks = [part for part in module.modules() if hasattr(part, "dropout") and hasattr(part, "conv1")]
    network["dropout"] = float(blocks[0].dropout) if blocks else 0.0  # type: ignore[arg-type]
    network["label_dropout"] = float(getattr(module.model, "label_dropout", 0))
    return {**arguments, **network, "model_type": type(module.model).__name__}


def _network(state: Mapping[str, torch.Tensor], model_type: str) -> dict[str, Any]:
    """The arguments of the U-Net; ValueError where a key that they are read from is missing."""
    levels = _encoder_levels(state)
    if not levels:
        raise ValueError("module: its state dict has no model.enc.<R>x<R>_conv.weight, so it is no U-Net of EDM's")
    first = _tensor(state, f"enc.{levels[0]}x{levels[0]}_conv.weight")
    mapping = _tensor(state, "map_layer0.weight")
    song = model_type == "SongUNet"
    model_channels = first.shape[0] if song else mapping.shape[1]
    widths = [_tensor(state, f"enc.{level}x{level}_block0.conv0.weight").shape[0] for level in levels]
    arguments: dict[str, Any] = {
        "img_resolution": levels[0],
        "in_channels": first.shape[1],
        "label_dim": _columns(state, "map_label.weight"),
        "augment_dim": _columns(state, "map_augment.weight"),
        "model_channels": model_channels,
        "channel_mult": [width // model_channels for width in widths],
        "channel_mult_emb": mapping.shape[0] // model_channels,
        "num_blocks": sum(
            bool(re.match(rf"model\.enc\.{levels[0]}x.*_block\d+\.conv0\.weight$", key)) for key in state
        ),
        "attn_resolutions": [level for level in levels if f"model.enc.{level}x{level}_block0.qkv.weight" in state],
    }
    if not song:
        return arguments
    parts = {key.split(".")[2].partition("_")[2] for key in state if key.startswith(("model.enc.", "model.dec."))}
    arguments["embedding_type"] = "fourier" if "model.map_noise.freqs" in state else "positional"
    arguments["channel_mult_noise"] = mapping.shape[1] // model_channels
    arguments["encoder_type"] = "skip" if "aux_skip" in parts else "residual" if "aux_residual" in parts else "standard"
    arguments["decoder_type"] = "skip" if "aux_up" in parts else "standard"
    filters = [tensor for key, tensor in state.items() if key.endswith("_down.conv0.resample_filter")]
    if filters:
        # The buffer is f fᵀ with sum(f) = 1.
        arguments["resample_filter"] = filters[0][0, 0].double().sum(dim=1).tolist()
    return arguments


def _encoder_levels(state: Mapping[str, torch.Tensor]) -> list[int]:
    """Resolutions of the encoder, highest first."""
    found = {int(match[1]) for key in state if (match := re.match(r"model\.enc\.(\d+)x\1_(conv|down)\.", key))}
    return sorted(found, reverse=True)


def _tensor(state: Mapping[str, torch.Tensor], key: str) -> torch.Tensor:
    if f"model.{key}" not in state:
        raise ValueError(f"module: its state dict has no model.{key}, so it is no U-Net of EDM's")
    return state[f"model.{key}"]


def _columns(state: Mapping[str, torch.Tensor], key: str) -> int:
    """The number of inputs of a linear layer, 0 if there is none."""
    return state[f"model.{key}"].shape[1] if f"model.{key}" in state else 0
