"""`edm-fast convert`: a checkpoint of EDM's as a safetensors file."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from edm_fast.checkpoints import load, save_network
from edm_fast.cli.network import NetworkFile
from edm_fast.cli.options import weights_dtype
from edm_fast.errors import CheckpointError


@click.command()
@click.argument("source", type=NetworkFile())
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--entry", help="Which of the file's networks.  [default: ema, or net of a training state]")
@weights_dtype
def convert(source: Path, target: Path, entry: str | None, dtype: str) -> None:
    """Write the network in SOURCE, an EDM pickle, training state or URL, to TARGET, a safetensors file.

    Nothing in SOURCE is run. TARGET holds the weights and the constructor arguments, and loads everywhere that SOURCE
    does.
    """
    if target.suffix != ".safetensors":
        raise click.BadParameter(f"{target} must end in .safetensors", param_hint="TARGET")
    try:
        net = load(source, entry=entry)
        save_network(net, target, dtype=getattr(torch, dtype), card=f"Converted from {source.name}.")
    except (CheckpointError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        name = error.filename or target
        raise click.ClickException(f"cannot read or write {name}: {error.strerror or error}") from None
    count = sum(parameter.numel() for parameter in net.parameters())
    click.echo(f"{target}: {type(net).__name__}, {count:,} parameters in {dtype}")
