"""A training run in a folder: its state, log, snapshots and sample grids."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from edm_fast import images
from edm_fast.checkpoints.native import save_network
from edm_fast.files import atomic_write
from edm_fast.samplers import sample
from edm_fast.training.ema_snapshots import save_snapshots
from edm_fast.training.loop import Trainer
from edm_fast.training.resuming import restore, state_of
from edm_fast.training.run_log import LossBySigma, RunLog, plot_loss_by_sigma
from edm_fast.training.state import read_state, write_state

logger = logging.getLogger(__name__)

STATE_NAME = "training-state.safetensors"
NETWORK_NAME = "network.safetensors"
LOG_NAME = "log.jsonl"
PLOT_NAME = "loss-by-sigma.png"


class Run:
    """What `trainer` does, written to `outdir`, which must exist. Of several processes the first one writes."""

    def __init__(self, trainer: Trainer, outdir: str | os.PathLike[str], grid: int = 0) -> None:
        """`grid`: so many samples of the averaged network are drawn at every snapshot."""
        self.trainer = trainer
        self.outdir = Path(outdir)
        self.state_path = self.outdir / STATE_NAME
        self.network_path = self.outdir / NETWORK_NAME
        self.log = RunLog(self.outdir / LOG_NAME)
        self.grid = grid
        self._logged = time.monotonic()

    @property
    def writes(self) -> bool:
        """True in the process that writes the folder's files: the first of all."""
        return self.trainer.world.rank == 0

    def resume(self) -> bool:
        """Go back to the state in the folder; return False, changing nothing, when there is none.

        Raises CheckpointError, naming the file, when it is damaged or belongs to other settings or other data.
        """
        if not self.state_path.exists():
            return False
        restore(self.trainer, self.state_path, *read_state(self.state_path))
        if self.writes:
            self.log.rewind(self.trainer.images_seen)
        return True

    def go(
        self, snapshot: int | None = None, progress: bool = True, should_stop: Callable[[], bool] = lambda: False
    ) -> bool:
        """Train to the end, and write the state and the averaged network (float16).

        Args:
            snapshot: write a snapshot every so many images: the state, a line of the log, samples, power-function
                averages. None writes one at the end only.
            progress: show a bar with the loss and the time left.
            should_stop: asked after each step; True ends the run early, with its state written.

        Returns whether the run is complete.
        """
        trainer = self.trainer
        config = trainer.config
        first = trainer.images_seen
        if self.writes and first == 0:
            self.log.rewind(0)
        with tqdm(total=config.steps * config.batch, unit="img", disable=not (progress and self.writes)) as bar:
            bar.update(first)
            smooth: float | None = None
            while trainer.step < config.steps:
                loss = trainer.train_step().loss
                smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
                bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
                bar.update(config.batch)
                if trainer.world.any(should_stop()):
                    break
                seen = trainer.images_seen
                # At multiples of the interval, so that an interrupted run makes them where another does.
                if (
                    snapshot is not None
                    and trainer.step < config.steps
                    and seen // snapshot > (seen - config.batch) // snapshot
                ):
                    self._snapshot()
        complete = trainer.step == config.steps
        if complete and trainer.images_seen > first:
            self._snapshot()
        elif not complete:
            self.save_state()
        if complete and self.writes:
            save_network(trainer.averages[0].net, self.network_path, dtype=torch.float16)
        trainer.world.wait()
        if trainer.nonfinite_gradients:
            logger.warning("%d gradient values were NaN or infinite in this run", trainer.nonfinite_gradients)
        return complete

    def save_state(self) -> None:
        """Write the state file; the old one stays until the new one is whole."""
        trainer = self.trainer
        sums = trainer.world.sum(trainer.losses.sums.to(trainer.world.device)).cpu()
        if self.writes:
            write_state(self.state_path, *state_of(trainer, sums))
        # Each process goes on with its own share.
        trainer.world.wait()

    def _snapshot(self) -> None:
        trainer = self.trainer
        trainer.world.sum(trainer.losses.sums)
        if self.writes:
            self._write_log_line()
            name = f"{trainer.images_seen:010d}"
            if trainer.power_averages is not None:
                save_snapshots(trainer.power_averages, self.outdir, trainer.images_seen)
            if self.grid:
                self._write_grid(self.outdir / f"samples-{name}.png")
        trainer.losses = LossBySigma()
        self.save_state()

    def _write_log_line(self) -> None:
        trainer = self.trainer
        now = time.monotonic()
        record: dict[str, Any] = {
            "images": trainer.images_seen,
            "loss": trainer.losses.mean,
            "lr": trainer.config.learning_rate(trainer.step - 1),
            "seconds": round(now - self._logged, 3),
            "nonfinite_gradients": trainer.nonfinite_gradients,
            "loss_by_sigma": trainer.losses.rows(),
        }
        if trainer.world.device.type == "cuda":
            record["peak_memory"] = torch.cuda.max_memory_allocated(trainer.world.device)
        self._logged = now
        self.log.append(record)
        plot_loss_by_sigma(self.log.records(), self.outdir / PLOT_NAME)

    def _write_grid(self, path: Path) -> None:
        net = self.trainer.averages[0].net
        labels = [seed % net.label_dim for seed in range(self.grid)] if net.label_dim else None
        made = sample(net, range(self.grid), labels, num_steps=18)
        with atomic_write(path) as file:
            file.write(images.png_bytes(images.contact_sheet(images.to_bytes(made))))
