"""The training loop: Adam on the EDM loss, a weight average, and a state from which a run goes on to the same bits."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from edm_fast.checkpoints.native import save_network
from edm_fast.errors import CheckpointError
from edm_fast.networks import EDMPrecond
from edm_fast.reference.losses import EDMLoss
from edm_fast.training.config import TrainConfig
from edm_fast.training.data import NUM_CLASSES, Dataset
from edm_fast.training.ema import EMA
from edm_fast.training.state import read_state, write_state

logger = logging.getLogger(__name__)

STATE_NAME = "training-state.safetensors"
NETWORK_NAME = "network.safetensors"
GRADIENT_LIMIT = 1e5


def replace_nonfinite(gradients: list[Tensor]) -> int:
    """Put 0 for NaN and ±1e5 for ±Inf in place, and return how many values that were."""
    count = 0
    for gradient in gradients:
        bad = gradient.numel() - int(gradient.isfinite().sum())
        if bad:
            count += bad
            torch.nan_to_num(gradient, nan=0, posinf=GRADIENT_LIMIT, neginf=-GRADIENT_LIMIT, out=gradient)
    return count


class Trainer:
    """One run: `net` in training, its average `ema.net`, and the position `step` in `config.steps`.

    All random numbers of a run follow from `config.seed`: the order of the data from (seed, epoch), the rest from
    torch's default generator, whose state is kept in the state file and is put back as it was after each call.

    Args:
        config: the settings.
        data: training images [N, C, R, R] and class ids.
        outdir: where the state and the finished network are written; it must exist.
    """

    def __init__(self, config: TrainConfig, data: Dataset, outdir: str | os.PathLike[str]) -> None:
        self.config = config
        # Convolutions on small images train a fifth faster with channels last.
        self.images = data.images.contiguous(memory_format=torch.channels_last)
        self.labels = functional.one_hot(data.labels, NUM_CLASSES).to(torch.float32)
        self.state_path = Path(outdir) / STATE_NAME
        self.network_path = Path(outdir) / NETWORK_NAME
        self.step = 0
        self.nonfinite_gradients = 0
        self.loss = EDMLoss(config.P_mean, config.P_std, config.sigma_data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.net = EDMPrecond(
                self.images.shape[-1],
                self.images.shape[1],
                label_dim=NUM_CLASSES,
                sigma_data=config.sigma_data,
                dropout=config.dropout,
                **config.network,
            ).train()
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._rng_state = torch.get_rng_state()
        self.ema = EMA(self.net, config.ema, config.ema_ramp_up)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.lr, betas=(0.9, config.beta2), eps=1e-8)
        self._order: tuple[int, Tensor] | None = None

    @property
    def images_seen(self) -> int:
        """Images trained on so far."""
        return self.step * self.config.batch

    def _shuffled(self, epoch: int) -> Tensor:
        """The order in which an epoch visits the images: a function of (seed, epoch)."""
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + epoch) % 2**63)
            self._order = (epoch, torch.randperm(self.images.shape[0], generator=generator))
        return self._order[1]

    def _next_batch(self) -> Tensor:
        """Indices of the images of the current step; batches run on from one epoch into the next."""
        count = self.images.shape[0]
        position, missing = self.images_seen, self.config.batch
        parts = []
        while missing:
            epoch, offset = divmod(position, count)
            part = self._shuffled(epoch)[offset : offset + missing]
            parts.append(part)
            position += len(part)
            missing -= len(part)
        return torch.cat(parts)

    def train_step(self) -> float:
        """Do one step and return the mean of the weighted loss over the batch and its pixels."""
        chosen = self._next_batch()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.net, self.images[chosen], self.labels[chosen])
        (loss.sum() / self.config.batch).backward()
        bad = replace_nonfinite([p.grad for p in self.net.parameters() if p.grad is not None])
        if bad:
            self.nonfinite_gradients += bad
            logger.warning("step %d: replaced %d gradient values that were NaN or infinite", self.step, bad)
        self.optimizer.step()
        self.ema.update(self.net, self.images_seen, self.config.batch)
        self.step += 1
        return float(loss.detach().mean())

    def run(
        self, snapshot: int | None = None, progress: bool = True, should_stop: Callable[[], bool] = lambda: False
    ) -> bool:
        """Train to the end, and write the state and the averaged network (float16).

        Args:
            snapshot: write the state every so many images; None writes it at the end only.
            progress: show a bar with the loss and the time left.
            should_stop: asked after each step; True ends the run early, with its state written.

        Returns whether the run is complete.
        """
        with (
            torch.random.fork_rng(devices=[]),
            tqdm(total=self.config.steps * self.config.batch, unit="img", disable=not progress) as bar,
        ):
            bar.update(self.images_seen)
            torch.set_rng_state(self._rng_state)
            saved = self.images_seen
            smooth: float | None = None
            while self.step < self.config.steps:
                loss = self.train_step()
                smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
                bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
                bar.update(self.config.batch)
                self._rng_state = torch.get_rng_state()
                if should_stop():
                    break
                if snapshot is not None and self.images_seen - saved >= snapshot:
                    self.save_state()
                    saved = self.images_seen
        self.save_state()
        if self.nonfinite_gradients:
            logger.warning("%d gradient values were NaN or infinite in this run", self.nonfinite_gradients)
        if self.step < self.config.steps:
            return False
        save_network(self.ema.net, self.network_path, dtype=torch.float16)
        return True

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"rng_state": self._rng_state}
        tensors |= {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.net.state_dict().items()}
        for name, parameter in self.net.named_parameters():
            moments = self.optimizer.state.get(parameter) or {
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            tensors[f"exp_avg.{name}"] = moments["exp_avg"]
            tensors[f"exp_avg_sq.{name}"] = moments["exp_avg_sq"]
        return tensors

    def save_state(self) -> None:
        """Write the state file; the old one stays until the new one is whole."""
        record = {
            "step": self.step,
            "nonfinite_gradients": self.nonfinite_gradients,
            "threads": torch.get_num_threads(),
            "config": self.config.to_dict(),
        }
        write_state(self.state_path, self._tensors(), record)

    def resume(self) -> bool:
        """Go back to the state in the output directory; return False, changing nothing, when there is none.

        Raises CheckpointError, naming the file, when it is damaged or belongs to other settings.
        """
        if not self.state_path.exists():
            return False
        tensors, record = read_state(self.state_path)
        self._check_settings(record)
        expected = self._tensors()
        wrong = sorted(
            name
            for name in expected.keys() | tensors.keys()
            if name not in tensors
            or name not in expected
            or tensors[name].shape != expected[name].shape
            or tensors[name].dtype != expected[name].dtype
        )
        if wrong:
            raise CheckpointError(f"{self.state_path}: tensors do not match the network: {wrong[:3]}")
        for prefix, net in (("net.", self.net), ("ema.", self.ema.net)):
            net.load_state_dict({name: tensors[prefix + name] for name in net.state_dict()})
        self.step = int(record["step"])
        self.nonfinite_gradients = int(record["nonfinite_gradients"])
        for name, parameter in self.net.named_parameters():
            self.optimizer.state[parameter] = {
                moment: torch.empty_like(parameter, requires_grad=False).copy_(tensors[f"{moment}.{name}"])
                for moment in ("exp_avg", "exp_avg_sq")
            }
            self.optimizer.state[parameter]["step"] = torch.tensor(float(self.step))
        self._rng_state = tensors["rng_state"]
        if record["threads"] != torch.get_num_threads():
            logger.warning(
                "the run so far used %s threads and this one uses %d: the weights may differ in the last bits",
                record["threads"],
                torch.get_num_threads(),
            )
        return True

    def _check_settings(self, record: dict[str, Any]) -> None:
        wanted = self.config.to_dict()
        found = record.get("config")
        if not isinstance(found, dict) or not {"step", "nonfinite_gradients", "threads"} <= record.keys():
            raise CheckpointError(f"{self.state_path}: damaged training state: its record is incomplete")
        differing = [
            f"{name} {found.get(name)!r} (now {wanted.get(name)!r})"
            for name in sorted(wanted.keys() | found.keys())
            if wanted.get(name) != found.get(name)
        ]
        if differing:
            raise CheckpointError(f"{self.state_path}: it belongs to a run with other settings: {', '.join(differing)}")
