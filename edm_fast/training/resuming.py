"""From a trainer to a state that can be written, and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm_fast.errors import CheckpointError
from edm_fast.training.loop import Trainer

logger = logging.getLogger(__name__)

_MOMENTS = ("exp_avg", "exp_avg_sq")
_RECORDED = ("step", "nonfinite_gradients", "threads", "processes", "config", "data")


def state_of(trainer: Trainer, loss_sums: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, record) of all that a run goes on from; `loss_sums` are those of all processes."""
    tensors = {"loss_sums": loss_sums}
    for prefix, values in _parts(trainer).items():
        tensors |= {f"{prefix}.{name}": tensor for name, tensor in values.items()}
    record = {
        "step": trainer.step,
        "nonfinite_gradients": trainer.nonfinite_gradients,
        "threads": torch.get_num_threads(),
        "processes": trainer.world.size,
        "config": trainer.config.to_dict(),
        "data": trainer.data.fingerprint,
    }
    return tensors, record


def restore(trainer: Trainer, path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Put the trainer where the state was made.

    Raises CheckpointError, naming `path`, when it belongs to other settings or data; the trainer is unchanged then.
    """
    _check_record(trainer, path, record)
    parts = _parts(trainer)
    expected = {f"{prefix}.{name}": tensor for prefix, values in parts.items() for name, tensor in values.items()}
    expected["loss_sums"] = trainer.losses.sums
    wrong = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in tensors
        or name not in expected
        or tensors[name].shape != expected[name].shape
        or tensors[name].dtype != expected[name].dtype
    )
    if wrong:
        raise CheckpointError(f"{path}: tensors do not match the network: {wrong[:3]}")
    trainer.step = int(record["step"])
    trainer.nonfinite_gradients = int(record["nonfinite_gradients"])
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])
    if trainer.world.rank:
        trainer.losses.sums.zero_()
    for name, parameter in trainer.net.named_parameters():
        moments = {moment: parts[moment][name] for moment in _MOMENTS}
        step = torch.tensor(float(trainer.step), device=parameter.device)
        trainer.optimizer.state[parameter] = {**moments, "step": step}
    for what, now in (("threads", torch.get_num_threads()), ("processes", trainer.world.size)):
        if record[what] != now:
            logger.warning(
                "the run so far used %s %s and this one uses %d: the weights may differ in the last bits",
                record[what], what, now,
            )  # fmt: skip


def _parts(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    """All tensors of a state but the loss, by part and name; moments that the optimiser has not made yet are zeros."""
    parts = {"net": dict(trainer.net.state_dict())}
    for index, average in enumerate(trainer.averages):
        parts[f"ema{index}"] = dict(average.net.state_dict())
    if trainer.power_averages is not None:
        for index, net in enumerate(trainer.power_averages.nets):
            parts[f"power_ema{index}"] = dict(net.state_dict())
    for moment in _MOMENTS:
        parts[moment] = {
            name: trainer.optimizer.state[parameter][moment]
            if parameter in trainer.optimizer.state
            else torch.zeros_like(parameter, requires_grad=False)
            for name, parameter in trainer.net.named_parameters()
        }
    return parts


def _check_record(trainer: Trainer, path: Path, record: Mapping[str, Any]) -> None:
    found = record.get("config")
    if not isinstance(found, dict) or not record.keys() >= set(_RECORDED):
        raise CheckpointError(f"{path}: damaged training state: its record is incomplete")
    wanted = trainer.config.to_dict()
    differing = [
        f"{name} {found.get(name)!r} (now {wanted.get(name)!r})"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    if differing:
        raise CheckpointError(f"{path}: it belongs to a run with other settings: {', '.join(differing)}")
    if record["data"] != trainer.data.fingerprint:
        raise CheckpointError(f"{path}: it belongs to a run on other data than {trainer.data.name}")
