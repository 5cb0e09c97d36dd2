"""`edm-fast reconstruct-ema`: a weight average of another width, from the snapshots of a training run."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from edm_fast.checkpoints import load_network, save_network
from edm_fast.cli.options import weights_dtype
from edm_fast.errors import CheckpointError
from edm_fast.training.ema_reconstruction import reconstruct
from edm_fast.training.ema_snapshots import read_snapshot
from edm_fast.training.power_ema import check_sigma_rel


def _width(context: click.Context, parameter: click.Parameter, value: float) -> float:
    try:
        check_sigma_rel(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None
    return value


@click.command("reconstruct-ema")
@click.argument(
    "snapshots",
    metavar="SNAPSHOT...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option("--sigma_rel", type=float, required=True, callback=_width, help="Width as a fraction of the run.")
@click.option("--images", type=click.IntRange(1), help="Images seen at the end of the average.  [default: the latest]")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The .safetensors file to write."
)
@weights_dtype
def reconstruct_ema(snapshots: tuple[Path, ...], sigma_rel: float, images: int | None, out: Path, dtype: str) -> None:
    """Combine power-function averages, the SNAPSHOT files of one training run, into the average of another width.

    All snapshots of the run are best: more of them, of two widths, come closer to the average that training with
    this width would have given. The file loads everywhere that checkpoints do.
    """
    if out.suffix != ".safetensors":
        raise click.BadParameter(f"{out} must end in .safetensors", param_hint="--out")
    if out.exists() and any(out.samefile(path) for path in snapshots):
        raise click.BadParameter(f"{out} is one of the snapshots", param_hint="--out")
    try:
        opened = [read_snapshot(path) for path in snapshots]
        end = images or max(snapshot.images_seen for snapshot in opened)
        state = reconstruct(opened, sigma_rel, end)
        net = load_network(snapshots[0])
        net.load_state_dict(state)
        card = f"Power-function average of relative width {sigma_rel:g} after {end} images."
        save_network(net, out, dtype=getattr(torch, dtype), card=card)
    except (CheckpointError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        name = error.filename or out
        raise click.ClickException(f"cannot read or write {name}: {error.strerror or error}") from None
    click.echo(f"{out}: sigma_rel {sigma_rel:g} after {end:,} images, in {dtype}")
