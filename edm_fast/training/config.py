"""Settings of a training run. The defaults are those of the network that ships with the package."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

DECAYS = ("cosine", "none")
PRECONDITIONINGS = ("edm", "vp", "ve")
DTYPES = ("float32", "bfloat16", "float16")
# Columns of the labels of `augmentation`.
AUGMENT_DIM = 9


def digits_network() -> dict[str, Any]:
    """Constructor arguments of the SongUNet inside the shipped network."""
    return {
        "model_type": "SongUNet",
        "model_channels": 32,
        "channel_mult": [1, 2],
        "num_blocks": 2,
        "attn_resolutions": [4],
    }


@dataclasses.dataclass
class TrainConfig:
    """What a run computes. Amounts of data are in images; two runs with equal settings give equal weights.

    Raises ValueError, naming the setting, for one that is out of range.

    Attributes:
        duration: images to train on, rounded up to whole batches.
        batch: images per step.
        micro_batch: how many of them one process takes at a time, accumulating gradients; None: its whole share.
        precond: 'edm', 'vp' or 've': the preconditioning with its loss.
        lr: Adam's learning rate after the warm-up.
        warmup: images over which the rate rises linearly from 0.
        decay: 'cosine' brings the rate to 0 at the end of the run, 'none' keeps it.
        beta2: Adam's decay of the squared gradients; the other one is 0.9 and epsilon 1e-8.
        ema: half-lives of the weight averages; the first one is the network that is written at the end.
        ema_ramp_up: bound of the half-lives as a fraction of the images seen.
        power_ema: relative widths of power-function averages, whose snapshots `edm-fast reconstruct-ema` combines.
        dropout: dropout probability of the network.
        augment: probability p of the augmentation pipe; 0 trains without it.
        dtype: what the network computes in, 'float32', 'bfloat16' or 'float16'; weights stay float32.
        loss_scale: the loss is multiplied by it, and the gradients divided, against underflow in float16.
        P_mean, P_std: mean and deviation of ln σ in training, of precond 'edm'.
        sigma_data: of the preconditioning and of the loss's weight, of precond 'edm'.
        labels: train a conditional network, if the data have labels.
        seed: of initial weights, data order, noise and dropout; 0 … 2⁶³−1.
        network: constructor arguments of the network beyond those that the data decide.
    """

    duration: int = 400_000
    batch: int = 128
    micro_batch: int | None = None
    precond: str = "edm"
    lr: float = 2e-3
    warmup: int = 10_000
    decay: str = "cosine"
    beta2: float = 0.999
    ema: tuple[float, ...] = (20_000,)
    ema_ramp_up: float = 0.05
    power_ema: tuple[float, ...] = ()
    dropout: float = 0.10
    augment: float = 0.0
    dtype: str = "float32"
    loss_scale: float = 1.0
    P_mean: float = -0.8
    P_std: float = 1.2
    sigma_data: float = 0.75
    labels: bool = True
    seed: int = 0
    network: dict[str, Any] = dataclasses.field(default_factory=digits_network)

    def __post_init__(self) -> None:
        for name, choices in (("decay", DECAYS), ("precond", PRECONDITIONINGS), ("dtype", DTYPES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, but it is {getattr(self, name)!r}")
        for name in ("duration", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but it is {getattr(self, name)}")
        if self.micro_batch is not None and not 1 <= self.micro_batch <= self.batch:
            raise ValueError(f"micro_batch must be from 1 to the batch, {self.batch}, but it is {self.micro_batch}")
        for name in ("lr", "P_std", "sigma_data", "loss_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, but it is {getattr(self, name)}")
        for name in ("warmup", "ema_ramp_up"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, but it is {getattr(self, name)}")
        self.ema, self.power_ema = tuple(self.ema), tuple(self.power_ema)
        if not self.ema or len(set(self.ema)) < len(self.ema) or not all(0 <= h < math.inf for h in self.ema):
            raise ValueError(f"ema must be one or more different numbers, 0 or more and finite, but it is {self.ema}")
        for name in ("dropout", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and less than 1, but it is {getattr(self, name)}")
        if not 0 <= self.augment <= 1:
            raise ValueError(f"augment must be from 0 to 1, but it is {self.augment}")
        if not math.isfinite(self.P_mean):
            raise ValueError(f"P_mean must be finite, but it is {self.P_mean}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2**63 - 1, but it is {self.seed}")

    @property
    def steps(self) -> int:
        """Number of optimiser steps in the run."""
        return -(-self.duration // self.batch)

    def learning_rate(self, step: int) -> float:
        """Rate of the step with this index: linear warm-up times the decay."""
        warm = min(step * self.batch / self.warmup, 1.0) if self.warmup else 1.0
        decay = 0.5 * (1 + math.cos(math.pi * step / self.steps)) if self.decay == "cosine" else 1.0
        return self.lr * warm * decay

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data for JSON."""
        return {**dataclasses.asdict(self), "ema": list(self.ema), "power_ema": list(self.power_ema)}
