"""`edm-fast generate`: images from a checkpoint, one per seed."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from edm_fast import images
from edm_fast.cli.network import NetworkFile, check_class, load_with_hash
from edm_fast.cli.options import Device, Folder, Interval, Number, SeedList, Shard
from edm_fast.cli.output import ImageFolder, OtherSettingsError
from edm_fast.cli.sampler_options import sampler_options
from edm_fast.files import GRID, atomic_write
from edm_fast.networks import Precond
from edm_fast.ops.backends import usable_device
from edm_fast.ops.tensors import seed_tensor
from edm_fast.samplers import edm_table, sample
from edm_fast.samplers.guidance import guidance_of
from edm_fast.samplers.noise import RNGS, random_classes
from edm_fast.samplers.recovery import NotFiniteError, in_batches

logger = logging.getLogger(__name__)


@click.command()
@click.option(
    "--network",
    type=NetworkFile(),
    help="Checkpoint, a file or an https URL.  [default: the shipped digits]",
)
@click.option("--outdir", type=Folder(), default="out", show_default=True, help="Where the images go.")
@click.option("--seeds", type=SeedList(), default="0-63", show_default=True, help="Seeds, such as 1,2,5-10.")
@click.option("--subdirs", is_flag=True, help="A folder for every thousand seeds.")
@click.option("--class", "class_idx", type=click.IntRange(min=0), help="Class.  [default: random, by seed]")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images at a time.")
@sampler_options
@click.option("--guidance", type=Number(), default=1, show_default=True, help="Weight w of D_g + w (D - D_g).")
@click.option(
    "--gnet",
    type=NetworkFile(),
    help="Checkpoint that gives D_g.  [default: the network without a class]",
)
@click.option(
    "--guidance_interval",
    type=Interval(),
    default="0,inf",
    show_default=True,
    help="LOW,HIGH: guidance at noise levels above the first, up to the second.",
)
@click.option("--shard", type=Shard(), help="I/N: every N-th seed, from the I-th on; I is 0 to N-1.")
@click.option(
    "--rng",
    type=click.Choice(RNGS),
    default="philox",
    show_default=True,
    help="The noise: ours, or that of a torch generator per seed, as NVlabs/edm makes it.",
)
@click.option("--debug-overflow", is_flag=True, help="Name the first layer of a network that overflows in 16 bits.")
@click.option("--grid", is_flag=True, help="Also write a contact sheet, grid.png.")
@click.option("--device", type=Device(), default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="The network's precision.",
)
def generate(
    network: Path | None,
    outdir: Path,
    seeds: list[int],
    subdirs: bool,
    class_idx: int | None,
    batch: int,
    grid: bool,
    device: torch.device,
    dtype: str,
    steps: int,
    disc: str,
    guidance: float,
    gnet: Path | None,
    guidance_interval: tuple[float, float],
    shard: tuple[int, int] | None,
    rng: str,
    debug_overflow: bool,
    **solver_options: Any,
) -> None:
    """Make one PNG per seed in OUTDIR.

    An image depends on its seed and the settings; --batch does not matter (but to the last bits of networks on
    CUDA). A run that was interrupted goes on where it stopped; other settings need another folder. Under
    torchrun every rank makes its share of the seeds, and so does every process with a --shard of its own.
    """
    rank, ranks = _share(shard)
    device = _own_device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # or every rank would also open the first device
    if dtype == "float16" and device.type != "cuda":
        raise click.BadParameter("float16 networks run on CUDA only", param_hint="--dtype")
    if grid and ranks > 1:
        raise click.BadParameter("a contact sheet needs all images in one process", param_hint="--grid")

    net, file_hash = load_with_hash(network, device)
    net.use_fp16 = dtype == "float16"
    check_class(net, class_idx)
    if net.img_channels not in (1, 3):
        raise click.ClickException(f"the network makes {net.img_channels} channels; PNG files hold 1 or 3")

    options = {"num_steps": steps, "discretization": disc, **solver_options}
    try:
        edm_table(net, **options)
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from None
    settings: dict[str, object] = {"network": file_hash, "class": class_idx, "dtype": dtype, "device": device.type}
    settings |= {**options, "rng": rng, "subdirs": subdirs}
    if guidance == 1 and (gnet is not None or guidance_interval != (0, math.inf)):
        raise click.UsageError("--gnet and --guidance_interval mean nothing without --guidance")
    if guidance != 1:
        second, second_hash = (None, None) if gnet is None else load_with_hash(gnet, device)
        if second is None and not net.label_dim:
            raise click.BadParameter("the network is unconditional; give a --gnet", param_hint="--guidance")
        if second is not None:
            second.use_fp16 = net.use_fp16
        try:
            labels = torch.zeros(1, net.label_dim) if net.label_dim else None
            guidance_of(net, labels, guidance, second, guidance_interval)
        except ValueError as error:
            raise click.UsageError(f"--{error}") from None
        settings |= {"guidance": guidance, "gnet": second_hash, "guidance_interval": guidance_interval}
        options |= {"guidance": guidance, "gnet": second, "guidance_interval": guidance_interval}

    try:
        folder = ImageFolder(outdir, settings, subdirs)
        mine = seeds[rank::ranks]
        todo = folder.missing(mine)
        if len(todo) < len(mine):
            logger.info("%d of %d images are already in %s", len(mine) - len(todo), len(mine), outdir)
        options |= {"rng": rng, "debug_overflow": debug_overflow}
        broken: list[str] = []
        with tqdm(total=len(todo), unit="image", disable=None) as bar:
            in_batches(
                lambda part: broken.extend(_make(net, todo[part], class_idx, options, folder)),
                len(todo),
                batch,
                lambda done, _: bar.update(done - bar.n),
            )
        if broken:
            raise click.ClickException("\n".join(broken))
        if grid:
            _write_grid(folder, seeds)
    except OtherSettingsError as error:
        raise click.BadParameter(str(error), param_hint="--outdir") from None
    except OSError as error:
        name = error.filename or outdir
        raise click.ClickException(f"cannot write {name}: {error.strerror or error}") from None
    except MemoryError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{len(mine)} images in {outdir}")


def _share(shard: tuple[int, int] | None) -> tuple[int, int]:
    """This process's rank and the number of ranks: the shard's, or as torchrun sets them."""
    if shard is not None:
        if "WORLD_SIZE" in os.environ:
            raise click.BadParameter("torchrun shares out the seeds already", param_hint="--shard")
        return shard
    rank, ranks = _environment_number("RANK", 0), _environment_number("WORLD_SIZE", 1)
    if rank >= ranks:
        raise click.UsageError(f"RANK is {rank} and WORLD_SIZE is {ranks}: a rank is below the number of ranks")
    return rank, ranks


def _own_device(device: torch.device) -> torch.device:
    """The device itself; for CUDA without an index the one that torchrun gives this rank, or the first."""
    if device.type != "cuda" or device.index is not None:
        return device
    try:
        return usable_device("LOCAL_RANK", f"cuda:{_environment_number('LOCAL_RANK', 0)}")
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _environment_number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise click.UsageError(f"the environment variable {name} is {text!r}; it must be an integer")
    return int(text)


def _make(
    net: Precond, seeds: list[int], class_idx: int | None, options: dict[str, Any], folder: ImageFolder
) -> list[str]:
    """Write the images of a batch; says which are missing because the network gave NaN or infinity."""
    labels = None
    if net.label_dim and class_idx is not None:
        labels = [class_idx] * len(seeds)
    elif net.label_dim:
        keys = seed_tensor(seeds, next(net.parameters()).device)
        shape = (net.img_channels, net.img_resolution, net.img_resolution)
        labels = random_classes(keys, net.label_dim, options["rng"], shape)
    broken: list[str] = []
    try:
        made = sample(net, seeds, labels, batch=None, **options)
    except NotFiniteError as error:
        made = error.images[error.finite]
        seeds = [seed for seed, finite in zip(seeds, error.finite.tolist(), strict=True) if finite]
        broken.append(str(error))
    if seeds:
        folder.write(seeds, map(images.png_bytes, images.to_bytes(made)))
    return broken


def _write_grid(folder: ImageFolder, seeds: list[int]) -> None:
    pixels = [np.atleast_3d(np.asarray(Image.open(folder.path(seed)))) for seed in seeds]
    with atomic_write(folder.outdir / GRID) as file:
        file.write(images.png_bytes(images.contact_sheet(np.stack(pixels))))
