"""`edm-fast train`: train a network on images."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
import torch

from edm_fast.cli.options import Device
from edm_fast.errors import CheckpointError, DataError
from edm_fast.ops.backends import usable_device
from edm_fast.training.config import DECAYS, DTYPES, PRECONDITIONINGS
from edm_fast.training.data import open_data
from edm_fast.training.distributed import world_of_torchrun
from edm_fast.training.loop import Trainer
from edm_fast.training.presets import PRESETS, preset
from edm_fast.training.run import Run

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


def _images(context: click.Context, parameter: click.Parameter, kimg: Any) -> Any:
    """Thousands of images, one number or several, as numbers of images; None and none stay."""
    if isinstance(kimg, tuple):
        return tuple(_images(context, parameter, each) for each in kimg)
    if kimg is None:
        return None
    if not math.isfinite(kimg):
        raise click.BadParameter(f"{kimg} is not a number of images", context, parameter)
    return round(kimg * 1000)


def _setting(name: str, kind: Any, text: str, **options: Any) -> Any:
    """An option for a setting of the run whose default is the preset's."""
    return click.option(f"--{name}", type=kind, default=None, help=f"{text}  [default: the preset's]", **options)


_KIMG = click.FloatRange(min=0)
_KIMG_SOME = click.FloatRange(min=0, min_open=True)


@click.command()
@click.option("--data", default="digits", show_default=True, help="Folder, .zip or .npz of images, or digits.")
@click.option("--outdir", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where to write.")
@click.option("--preset", "base", type=click.Choice(PRESETS), default="digits", show_default=True, help="Settings.")
@_setting("duration", _KIMG_SOME, "Thousands of images to train on.", callback=_images)
@_setting("batch", click.IntRange(1, 65536), "Images a step.")
@click.option("--micro-batch", type=click.IntRange(1, 65536), help="How many of them at a time.  [default: all]")
@_setting("precond", click.Choice(PRECONDITIONINGS), "Preconditioning and loss.")
@_setting("lr", click.FloatRange(min=0, min_open=True), "Learning rate after the warm-up.")
@_setting("warmup", _KIMG, "Thousands of images over which the learning rate rises.", callback=_images)
@_setting("decay", click.Choice(DECAYS), "How the learning rate falls.")
@click.option(
    "--ema",
    type=_KIMG,
    multiple=True,
    callback=_images,
    help="Half-life of the weight average in thousands of images; given again, one more average.  "
    "[default: the preset's]",
)
@click.option(
    "--power-ema",
    type=float,
    multiple=True,
    help="Relative width of a power-function average, with a snapshot of it at every --snapshot; may be given again.",
)
@_setting("dropout", click.FloatRange(min=0, max=1, max_open=True), "Dropout probability.")
@_setting("augment", click.FloatRange(min=0, max=1), "Probability of augmentations; 0 for none.")
@_setting("dtype", click.Choice(DTYPES), "What the network computes in.")
@_setting("loss-scale", click.FloatRange(min=0, min_open=True), "Factor of the loss, taken back from gradients.")
@_setting("channels", click.IntRange(min=1), "Channels of the network at full resolution.")
@click.option("--labels/--no-labels", default=True, show_default=True, help="Condition on the labels of the data.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Random seed.")
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
    type=_KIMG_SOME,
    default=50.0,
    show_default=True,
    callback=_images,
    help="Thousands of images between two writes of the state.",
)
@click.option(
    "--grid",
    type=click.IntRange(min=0, max=4096),
    default=0,
    show_default=True,
    help="Samples to draw at every snapshot.",
)
@click.option("--device", type=Device(), default="cpu", show_default=True, help="auto, cpu, cuda or cuda:1.")
@click.option("--progress/--no-progress", default=True, show_default=True, help="Show a progress bar.")
def train(
    data: str,
    outdir: Path,
    base: str,
    resume: bool,
    threads: int,
    snapshot: int,
    grid: int,
    device: torch.device,
    progress: bool,
    channels: int | None,
    **settings: Any,
) -> None:
    """Train a network and write OUTDIR/network.safetensors.

    The defaults make the network that ships with the package. Ctrl-C stops after the current step; the same command
    goes on from there, to the same weights as an uninterrupted run. Under torchrun the processes share every batch.
    OUTDIR also gets a log in JSON lines and, with matplotlib, a plot of the loss against the noise level.
    """
    given = {name: value for name, value in settings.items() if value is not None and value != ()}
    try:
        config = preset(base, **given)
        if channels is not None:
            config.network = {**config.network, "model_channels": channels}
        images = open_data(data, progress=progress)
        torch.set_num_threads(threads)
        with world_of_torchrun(device) as world:
            usable_device("device", world.device)
            with closing(Trainer(config, images, world)) as trainer:
                outdir.mkdir(parents=True, exist_ok=True)
                run = Run(trainer, outdir, grid)
                if resume and run.resume():
                    click.echo(f"Going on from {run.state_path} at {trainer.images_seen} images.", err=True)
                stop = StopFlag()
                with stop.catching():
                    complete = run.go(snapshot=snapshot, progress=progress, should_stop=stop)
    except (CheckpointError, DataError, ModuleNotFoundError, RuntimeError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if not complete:
        click.echo(f"Stopped at {trainer.images_seen} images; the same command goes on from there.", err=True)
        raise click.exceptions.Exit(INTERRUPTED)
    click.echo(str(run.network_path))
