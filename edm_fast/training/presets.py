"""The settings of EDM's published runs, and of the network that ships with the package."""

from __future__ import annotations

from typing import Any

from edm_fast.training.config import TrainConfig, digits_network

_MILLION = 1_000_000
_EDM: dict[str, Any] = {"decay": "none", "P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5}


def _ddpmpp(channel_mult: list[int], **more: Any) -> dict[str, Any]:
    return {"model_type": "SongUNet", "model_channels": 128, "channel_mult": channel_mult, **more}


def _ncsnpp(channel_mult: list[int]) -> dict[str, Any]:
    parts = {"encoder_type": "residual", "embedding_type": "fourier", "channel_mult_noise": 2}
    return _ddpmpp(channel_mult, resample_filter=[1, 3, 3, 1], **parts)


def _cifar10(network: dict[str, Any]) -> dict[str, Any]:
    return {
        **_EDM, "duration": 200 * _MILLION, "batch": 512, "lr": 1e-3, "warmup": 10 * _MILLION, "ema": (500_000,),
        "dropout": 0.13, "augment": 0.12, "network": network,
    }  # fmt: skip


def _faces(network: dict[str, Any], dropout: float) -> dict[str, Any]:
    return {**_cifar10(network), "batch": 256, "lr": 2e-4, "augment": 0.15, "dropout": dropout}


_PRESETS: dict[str, dict[str, Any]] = {
    "digits": {"network": digits_network()},
    "cifar10-ddpmpp": _cifar10(_ddpmpp([2, 2, 2])),
    "cifar10-ncsnpp": _cifar10(_ncsnpp([2, 2, 2])),
    "ffhq-ddpmpp": _faces(_ddpmpp([1, 2, 2, 2]), 0.05),
    "ffhq-ncsnpp": _faces(_ncsnpp([1, 2, 2, 2]), 0.05),
    "afhqv2-ddpmpp": _faces(_ddpmpp([1, 2, 2, 2]), 0.25),
    "afhqv2-ncsnpp": _faces(_ncsnpp([1, 2, 2, 2]), 0.25),
    "imagenet64-adm": {
        **_EDM, "duration": 2500 * _MILLION, "batch": 4096, "lr": 1e-4, "warmup": 10 * _MILLION,
        "ema": (50 * _MILLION,), "dropout": 0.10, "dtype": "float16", "loss_scale": 100.0,
        "network": {"model_type": "DhariwalUNet", "model_channels": 192, "channel_mult": [1, 2, 3, 4]},
    },
}  # fmt: skip
PRESETS = tuple(_PRESETS)


def preset(name: str, **changes: Any) -> TrainConfig:
    """The settings of a published run, with `changes` to them.

    Raises ValueError for a name that is not in `PRESETS`, or a setting that is out of range.
    """
    if name not in _PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, but it is {name!r}")
    return TrainConfig(**{**_PRESETS[name], **changes})
