"""`edm-fast train`: train a network on the built-in data."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
import torch

from edm_fast.errors import CheckpointError
from edm_fast.training.config import DATA_SETS, DECAYS, TrainConfig
from edm_fast.training.data import split_digits
from edm_fast.training.loop import STATE_NAME, Trainer

DEFAULTS = TrainConfig()
INTERRUPTED = 130


class StopFlag:
    """Set by the first Ctrl-C or SIGTERM, so that the loop ends between two steps; a second one ends at once."""

    def __init__(self) -> None:
        self.stopped = False

    def __call__(self) -> bool:
        """Return whether the run is to stop."""
        return self.stopped

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Catch the two signals inside the block."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def stop(number: int, frame: FrameType | None) -> None:
            self.stopped = True
            for caught, handler in before.items():
                signal.signal(caught, handler)

        for number in before:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _images(context: click.Context, parameter: click.Parameter, kimg: float) -> int:
    if not math.isfinite(kimg):
        raise click.BadParameter(f"{kimg} is not a number of images", context, parameter)
    return round(kimg * 1000)


@click.command()
@click.option(
    "--data", type=click.Choice(DATA_SETS), default=DEFAULTS.data, show_default=True, help="Built-in data set."
)
@click.option("--outdir", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where to write.")
@click.option(
    "--duration",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULTS.duration / 1000,
    show_default=True,
    callback=_images,
    help="Thousands of images to train on.",
)
@click.option(
    "--batch", type=click.IntRange(1, 65536), default=DEFAULTS.batch, show_default=True, help="Images a step."
)
@click.option(
    "--lr",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULTS.lr,
    show_default=True,
    help="Learning rate after the warm-up.",
)
@click.option(
    "--warmup",
    type=click.FloatRange(min=0),
    default=DEFAULTS.warmup / 1000,
    show_default=True,
    callback=_images,
    help="Thousands of images over which the learning rate rises.",
)
@click.option(
    "--decay",
    type=click.Choice(DECAYS),
    default=DEFAULTS.decay,
    show_default=True,
    help="How the learning rate falls.",
)
@click.option(
    "--ema",
    type=click.FloatRange(min=0),
    default=DEFAULTS.ema / 1000,
    show_default=True,
    callback=_images,
    help="Half-life of the weight average in thousands of images.",
)
@click.option(
    "--dropout",
    type=click.FloatRange(min=0, max=1, max_open=True),
    default=DEFAULTS.dropout,
    show_default=True,
    help="Dropout probability.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=DEFAULTS.seed, show_default=True, help="Random seed."
)
@click.option("--resume/--no-resume", default=True, show_default=True, help="Go on from the state in the directory.")
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="CPU threads; their number may change the last bits of the weights.",
)
@click.option(
    "--snapshot",
    type=click.FloatRange(min=0, min_open=True),
    default=50.0,
    show_default=True,
    callback=_images,
    help="Thousands of images between two writes of the state.",
)
@click.option("--progress/--no-progress", default=True, show_default=True, help="Show a progress bar.")
def train(
    data: str,
    outdir: Path,
    duration: int,
    batch: int,
    lr: float,
    warmup: int,
    decay: str,
    ema: int,
    dropout: float,
    seed: int,
    resume: bool,
    threads: int,
    snapshot: int,
    progress: bool,
) -> None:
    """Train a network and write OUTDIR/network.safetensors.

    The defaults make the network that ships with the package. Ctrl-C stops after the current step; the same command
    goes on from there, to the same weights as an uninterrupted run. The defaults use one CPU and need scikit-learn.
    """
    try:
        config = TrainConfig(
            data=data,
            duration=duration,
            batch=batch,
            lr=lr,
            warmup=warmup,
            decay=decay,
            ema=ema,
            dropout=dropout,
            seed=seed,
        )
        training_part, _ = split_digits()
        outdir.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(threads)
        trainer = Trainer(config, training_part, outdir)
        if resume and trainer.resume():
            click.echo(f"Going on from {outdir / STATE_NAME} at {trainer.images_seen} images.", err=True)
        stop = StopFlag()
        with stop.catching():
            complete = trainer.run(snapshot=snapshot, progress=progress, should_stop=stop)
    except (CheckpointError, ModuleNotFoundError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if not complete:
        click.echo(f"Stopped at {trainer.images_seen} images; the same command goes on from there.", err=True)
        raise click.exceptions.Exit(INTERRUPTED)
    click.echo(str(trainer.network_path))
