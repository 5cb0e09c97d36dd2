"""`edm-fast evaluate`: how far images are from a reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource
from tqdm import tqdm

from edm_fast.checkpoints import load, shipped_model
from edm_fast.cli.features import FileOr, chosen_extractor, extractor_options, reference_images
from edm_fast.cli.network import NetworkFile, check_class
from edm_fast.cli.options import Device, SeedList
from edm_fast.cli.sampler_options import SAMPLER_PARAMETERS, sampler_options
from edm_fast.errors import CheckpointError
from edm_fast.evaluation import (
    Evaluation,
    FolderImages,
    ImageSource,
    Measurement,
    SampledImages,
    compare,
    measure,
    read_statistics,
    write_statistics,
)
from edm_fast.samplers import edm_table

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.option("--images", type=_FOLDER, help="Folder of PNG or JPEG images to evaluate.")
@click.option("--seeds", type=SeedList(), help="Or seeds, such as 0-999, to make images of without writing them.")
@click.option(
    "--network", type=NetworkFile(), help="What makes them: a file or an https URL.  [default: the shipped digits]"
)
@click.option("--class", "class_idx", type=click.IntRange(min=0), help="Class of all.  [default: random, by seed]")
@click.option(
    "--ref",
    type=FileOr("digits", dir_okay=True),
    required=True,
    metavar="digits|DIR|FILE",
    help="What to compare with: the built-in digits, a folder of images, or EDM's statistics, an .npz.",
)
@click.option("--write-ref", type=click.Path(dir_okay=False, path_type=Path), help="Write the reference's statistics.")
@extractor_options
@click.option("--precision-recall", is_flag=True, help="Also precision and recall; --ref must be images.")
@click.option(
    "--neighbours", type=click.IntRange(min=1), default=3, show_default=True, help="k of precision and recall."
)
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images at a time.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--device", type=Device(), default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
@sampler_options
def evaluate(
    images: Path | None,
    seeds: list[int] | None,
    network: Path | None,
    class_idx: int | None,
    ref: Path | str,
    write_ref: Path | None,
    extractor: Path | str,
    weights: Path | None,
    rgb: bool,
    precision_recall: bool,
    neighbours: int,
    batch: int,
    as_json: bool,
    device: torch.device,
    steps: int,
    disc: str,
    **solver_options: Any,
) -> None:
    """Fréchet distance, precision and recall of images against a reference.

    The images are those of a folder (--images), or are made of --seeds as `edm-fast generate` makes them: both give the
    same numbers. For guidance, other noise or several processes, generate a folder first. With neither, only
    --write-ref is done.

    \b
    Fréchet distance  |m - m'|² + tr(S + S' - 2 (S S')^½) of the means and covariances of the
                      features; with --extractor=inception the FID. It depends on the number of
                      images: compare sets of one size, 50,000 where the literature's FID is meant.
    precision         share of images within reach of a real one (Kynkäänniemi et al. 2019)
    recall            share of real images within reach of one of the images
    """
    _check_usage()
    rgb = rgb or extractor == "inception"
    options = {"num_steps": steps, "discretization": disc, **solver_options}
    try:
        chosen = chosen_extractor(extractor, weights, device)
        reference_source = reference_images(ref, rgb)
        source: ImageSource | None = None
        if images is not None:
            source = FolderImages(images, rgb)
        elif seeds is not None:
            source = _sampled(seeds, network, class_idx, rgb, options, device)
        if source is not None and reference_source is not None and source.shape != reference_source.shape:
            found, wanted = source.shape, reference_source.shape
            raise click.UsageError(f"--ref: the images are {list(found)} (C, H, W), the reference {list(wanted)}")

        def measured(of: ImageSource, name: str) -> Measurement:
            with tqdm(total=len(of), unit="image", desc=name, disable=None) as bar:
                return measure(of, chosen, batch=batch, keep_features=precision_recall, progress=_updating(bar))

        if reference_source is not None:
            reference = measured(reference_source, "reference")
        else:
            reference = Measurement(read_statistics(ref))
        if write_ref is not None:
            write_statistics(write_ref, reference.gaussian)
        if source is None:
            return
        result = compare(measured(source, "images"), reference, neighbours if precision_recall else None)
    except (CheckpointError, ValueError, TypeError, ImportError, FloatingPointError) as error:
        raise click.ClickException(str(error)) from None
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise click.ClickException(f"out of memory; a smaller --batch needs less: {error}") from None
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None
    _print(result, str(ref), str(extractor), neighbours, as_json)


def _check_usage() -> None:
    """UsageError for options that contradict each other, or that would do nothing."""
    context = click.get_current_context()
    given = {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    }
    if "images" in given and "seeds" in given:
        raise click.UsageError("--images or --seeds: give one of them")
    if not given.keys() & {"images", "seeds", "write_ref"}:
        raise click.UsageError("--images or --seeds is needed, or --write-ref to write statistics only")
    needs = dict.fromkeys(("network", "class_idx", *SAMPLER_PARAMETERS), "--seeds")
    needs |= {"neighbours": "--precision-recall"}
    for name, other in needs.items():
        if name in given and other not in given.values():
            raise click.UsageError(f"{given[name]} means nothing without {other}")
    if "precision_recall" in given and not given.keys() & {"images", "seeds"}:
        raise click.UsageError("--precision-recall means nothing without --images or --seeds")
    if "weights" in given and context.params["extractor"] != "inception":
        raise click.UsageError("--weights means nothing without --extractor=inception")
    if "precision_recall" in given and Path(context.params["ref"]).is_file() and context.params["ref"] != "digits":
        raise click.BadParameter("precision and recall need images; statistics do not suffice", param_hint="--ref")


def _sampled(
    seeds: list[int],
    network: Path | None,
    class_idx: int | None,
    rgb: bool,
    options: dict[str, Any],
    device: torch.device,
) -> SampledImages:
    with nullcontext(network) if network is not None else shipped_model() as path:
        net = load(path, device=device)
    check_class(net, class_idx)
    try:
        edm_table(net, **options)
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from None
    return SampledImages(net, seeds, None if class_idx is None else [class_idx] * len(seeds), rgb, **options)


def _updating(bar: tqdm) -> Callable[[int, int], object]:
    return lambda done, _: bar.update(done - bar.n)


def _print(result: Evaluation, ref: str, extractor: str, neighbours: int, as_json: bool) -> None:
    rows: dict[str, object] = {
        "frechet_distance": result.frechet_distance,
        "images": result.images,
        "reference": ref,
        "reference_images": result.reference_images,
        "extractor": extractor,
        "features": result.features,
    }
    if result.precision is not None:
        rows |= {"precision": result.precision, "recall": result.recall, "neighbours": neighbours}
    for warning in result.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps({**rows, "warnings": result.warnings}))
        return
    width = max(map(len, rows))
    for name, value in rows.items():
        text = f"{value:.6g}" if isinstance(value, float) else str("unknown" if value is None else value)
        click.echo(f"{name:{width}}  {text}")
