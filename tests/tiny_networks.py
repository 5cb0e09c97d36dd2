"""Networks of every kind at a width that tests can pay for, with random weights that all matter."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from edm_fast import networks
from edm_fast.reference import preconditioning as reference

SONG: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 10,
    "model_type": "SongUNet",
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "dropout": 0.0,
}
ADM = {**SONG, "model_type": "DhariwalUNet", "model_channels": 32}
FOUR_TAPS = {"resample_filter": [1, 3, 3, 1]}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "ddpmpp": {**SONG, "augment_dim": 9},
    "ncsnpp": {
        **SONG,
        **FOUR_TAPS,
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "channel_mult": [1, 1, 2],
    },
    "adm": {**ADM, "augment_dim": 9},
    "adm under 64 channels": {**ADM, "model_channels": 24, "channel_mult": [1, 2, 2], "label_dim": 0},
    "encoder standard, decoder skip": {**SONG, "decoder_type": "skip", "img_channels": 1, "label_dim": 0},
    "encoder skip, decoder standard": {**SONG, "encoder_type": "skip", "img_channels": 5},
    "encoder skip, decoder skip": {
        **SONG,
        **FOUR_TAPS,
        "encoder_type": "skip",
        "decoder_type": "skip",
        "channel_mult": [1, 2, 2],
    },
    "encoder residual, decoder standard": {**SONG, "encoder_type": "residual", "channel_mult": [2, 1, 1]},
    "encoder residual, decoder skip": {**SONG, "encoder_type": "residual", "decoder_type": "skip"},
    "four taps": {**SONG, **FOUR_TAPS, "channel_mult": [2, 1], "num_blocks": 2},
    "adm of three levels": {**ADM, "channel_mult": [2, 1, 2], "num_blocks": 2},
    "without blocks": {**ADM, "num_blocks": 0},
    "24 channels": {**SONG, "model_channels": 24, "channel_mult": [1, 1, 2], "attn_resolutions": [8, 2]},
    "20x12": {**SONG, "img_resolution": 20, "channel_mult": [1, 2, 2], "attn_resolutions": [5]},
    "adm 20x12": {**ADM, "img_resolution": 20, "channel_mult": [1, 2, 2], "attn_resolutions": [10]},
    "48": {**SONG, "img_resolution": 48, "model_channels": 8, "attn_resolutions": [12], "channel_mult": [1, 2, 2]},
    "128": {**SONG, "img_resolution": 128, "model_channels": 8, "attn_resolutions": [], "channel_mult": [1] * 5},
    "wide enough for winograd": {**SONG, "img_resolution": 12, "model_channels": 128, "channel_mult": [1]},
}


def with_weights(net: Any, seed: int = 7) -> Any:
    """All parameters random, of a size that keeps the activations near 1; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            size = 1 / math.sqrt(max(parameter[0].numel(), 4))
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + torch.randn(parameter.shape, generator=generator) * size)
    return net.eval()


def tiny(name: str = "ddpmpp", precond: str = "EDMPrecond", seed: int = 7, **changes: Any) -> Any:
    """A fused network."""
    arguments = {**CONFIGURATIONS[name], **changes}
    torch.manual_seed(seed)
    return with_weights(getattr(networks, precond)(**arguments), seed)


def reference_of(net: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The reference network with the same weights, in a dtype of its own."""
    plain = getattr(reference, type(net).__name__)(**net.init_kwargs)
    plain.load_state_dict(net.state_dict())
    return copy.deepcopy(plain).eval().to(dtype)


def image_size(name: str) -> tuple[int, int]:
    resolution = CONFIGURATIONS[name]["img_resolution"]
    return (20, 12) if "20x12" in name else (resolution, resolution)


def inputs(name: str, samples: int = 2, seed: int = 3) -> tuple[torch.Tensor, ...]:
    """(x_in, c_noise, class_labels, augment_labels) of a network F; labels may have no columns."""
    arguments = CONFIGURATIONS[name]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn([samples, arguments["img_channels"], *image_size(name)], generator=generator)
    labels, augment = (
        torch.randn([samples, arguments.get(key, 0)], generator=generator) for key in ("label_dim", "augment_dim")
    )
    return x, torch.linspace(-1, 1, samples), labels, augment


def evaluate(net: Any, arguments: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
    """F of a module whose weights have `dtype`; all its inputs are rounded to float32 and then to `dtype`."""
    x, noise, labels, augment = (tensor.to(dtype) for tensor in arguments)
    with torch.inference_mode():
        output = net.model(x, noise, labels if labels.shape[1] else None, augment if augment.shape[1] else None)
        return output[:, : net.img_channels]
