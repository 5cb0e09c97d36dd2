"""`edm-fast tune`: the settings of churn that suit a network best."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource
from tqdm import tqdm

from edm_fast.cli.features import FileOr, chosen_extractor, extractor_options, reference_images
from edm_fast.cli.network import NetworkFile, check_class, file_hash, load_with_hash
from edm_fast.cli.options import Device
from edm_fast.cli.sampler_options import SAMPLER_PARAMETERS, sampler_options
from edm_fast.cli.tune_file import Numbers, TrialsFile, number
from edm_fast.errors import CheckpointError
from edm_fast.evaluation import Churn, Estimate, Grid, Measurement, Trial, Tuning, measure, read_statistics
from edm_fast.evaluation import tune as search_for_churn
from edm_fast.samplers import edm_table


@click.command()
@click.option(
    "--network", type=NetworkFile(), help="Checkpoint, a file or an https URL.  [default: the shipped digits]"
)
@click.option(
    "--ref",
    type=FileOr("digits", dir_okay=True),
    required=True,
    metavar="digits|DIR|FILE",
    help="What to be near to: the built-in digits, a folder of images, or EDM's statistics, an .npz.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file of all trials; goes on.")
@click.option("--images", type=click.IntRange(min=2), default=1000, show_default=True, help="Images in a set of seeds.")
@click.option("--sets", type=click.IntRange(min=1), default=3, show_default=True, help="Sets of seeds in a trial.")
@click.option("--first-seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed to count from.")
@click.option("--class", "class_idx", type=click.IntRange(min=0), help="Class of all.  [default: random, by seed]")
@extractor_options
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images at a time.")
@click.option("--device", type=Device(), default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
@sampler_options
def tune(
    network: Path | None,
    ref: Path | str,
    output: Path | None,
    images: int,
    sets: int,
    first_seed: int,
    class_idx: int | None,
    extractor: Path | str,
    weights: Path | None,
    rgb: bool,
    batch: int,
    device: torch.device,
    steps: int,
    disc: str,
    **solver_options: Any,
) -> None:
    """Search for the S_churn, S_min, S_max and S_noise whose images are nearest to a reference.

    By the Fréchet distance, along one parameter at a time over the values of its list, with the other options of the
    sampler fixed; the first values of --S_min, --S_max and --S_noise are where the search begins. S_churn = 0 is always
    tried. All trials have the same seeds, and the sets say which differences are noise.

    With --output a search that was interrupted goes on where it stopped.
    """
    if weights is not None and extractor != "inception":
        raise click.UsageError("--weights means nothing without --extractor=inception")
    lists = {name: solver_options.pop(name) for name in Churn._fields}
    rgb = rgb or extractor == "inception"
    options = {"num_steps": steps, "discretization": disc, **solver_options}
    try:
        defaults = Grid.for_steps(steps)
        grid = Grid(**{name: getattr(defaults, name) if values is None else values for name, values in lists.items()})
    except (ValueError, TypeError) as error:
        raise click.UsageError(f"--{error}") from None
    net, network_hash = load_with_hash(network, device)
    check_class(net, class_idx)
    try:
        edm_table(net, **options)
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from None
    try:
        chosen = chosen_extractor(extractor, weights, device)
        source = reference_images(ref, rgb)
        reference = Measurement(read_statistics(ref)) if source is None else measure(source, chosen, batch=batch)
        settings: dict[str, Any] = {
            "network": network_hash,
            "reference": _digest(reference),
            "extractor": _name(extractor, weights),
        }
        settings |= {"images": images, "sets": sets, "first_seed": first_seed, "class": class_idx, "rgb": rgb}
        settings |= {
            **options,
            "device": device.type,
            **{name: [*map(number, getattr(grid, name))] for name in Churn._fields},
        }
        tuning = _run(net, reference, chosen, grid, TrialsFile(output, settings), batch, settings, **options)
    except (CheckpointError, ValueError, TypeError, ImportError, FloatingPointError) as error:
        raise click.ClickException(str(error)) from None
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise click.ClickException(f"out of memory; a smaller --batch needs less: {error}") from None
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None
    features = len(reference.gaussian.mu)
    if images <= features:
        click.echo(f"warning: {images} images in a set are too few for a covariance of {features} features", err=True)
    _print(tuning)
    click.echo(_command(tuning.best.churn, class_idx))


# Of the options that the samplers' commands share, those of churn take lists here.
_HELP = {
    "S_churn": "Amounts of churn.  [default: raise noise by 0, 1/16, 1/8, 1/4 and 0.414 a step]",
    "S_min": "Lowest noise levels with churn.  [default: 0,0.05,0.5]",
    "S_max": "Highest noise levels with churn.  [default: inf,50,10,1]",
    "S_noise": "Factors on the noise.  [default: 1,1.003,1.007]",
}
tune.params = [
    click.Option([f"--{option.name}", option.name], type=Numbers(), help=_HELP[option.name])
    if option.name in _HELP
    else option
    for option in tune.params
]


def _run(
    net: Any,
    reference: Measurement,
    extractor: Any,
    grid: Grid,
    file: TrialsFile,
    batch: int,
    settings: Mapping[str, Any],
    **options: Any,
) -> Tuning:
    """The search, with a bar for each trial, and the file written after each that is new."""
    done: list[Trial] = []
    bars: dict[Churn, tqdm] = {}

    def report(trial: Trial) -> None:
        done.append(trial)
        if len(done) > len(file.trials):
            file.write(done)

    def progress(churn: Churn, count: int, total: int) -> None:
        if churn not in bars:
            title = f"trial {len(done) + 1} of at most {grid.most_trials}"
            bars[churn] = tqdm(total=total, unit="image", desc=title, disable=None, leave=False)
        bars[churn].update(count - bars[churn].n)
        if count == total:
            bars[churn].close()

    of_set = {name: settings[name] for name in ("images", "sets", "first_seed", "rgb")}
    hooks: dict[str, Any] = {"known": file.trials, "report": report, "progress": progress}
    hooks |= {"grid": grid, "batch": batch, "class_id": settings["class"]}
    return search_for_churn(net, reference, extractor, **hooks, **of_set, **options)


def _digest(reference: Measurement) -> str:
    """Of the statistics, to eight digits: the same images give the same whatever the batch."""
    text = repr([[f"{value:.8g}" for value in part.ravel()] for part in vars(reference.gaussian).values()])
    return hashlib.sha256(text.encode()).hexdigest()


def _name(extractor: Path | str, weights: Path | None) -> str:
    """The extractor's name, or the hash of its file."""
    name = extractor if isinstance(extractor, str) else file_hash(extractor)
    return name if weights is None else f"{name} {file_hash(weights)}"


def _print(tuning: Tuning) -> None:
    columns = ("S_churn", "S_min", "S_max", "S_noise", "distance", "±", "to S_churn=0", "±")
    rows: list[tuple[str, ...]] = [columns]
    for trial in tuning.trials:
        cells = [f"{value:g}" for value in trial.churn]
        if trial is tuning.deterministic:
            cells = ["0", "-", "-", "-"]
        difference = trial.difference(tuning.deterministic)
        rows.append(
            (*cells, *_cells(trial.distance), *_cells(difference, sign="+"), *("best",) * (trial is tuning.best))
        )
    for row in rows:
        click.echo("  ".join(f"{cell:>{12 if k in (4, 6) else 8}}" for k, cell in enumerate(row)))
    click.echo(_verdict(tuning))


def _cells(estimate: Estimate, sign: str = "") -> tuple[str, str]:
    error = estimate.standard_error
    return f"{estimate.mean:{sign}.5g}", "?" if error is None else f"{error:.2g}"


def _verdict(tuning: Tuning) -> str:
    if tuning.best is tuning.deterministic:
        return "No churn is best: the deterministic sampler has the least distance."
    within = tuning.gain.within_noise
    if within is None:
        return "Whether that is more than noise a single set of seeds does not say; give more --sets."
    if within:
        return "The gain over S_churn=0 is within the noise of the seeds: by this measure no churn is as good."
    close = [
        trial for trial in tuning.trials if trial is not tuning.best and trial.difference(tuning.best).within_noise
    ]
    return f"The gain over S_churn=0 is more than noise; {len(close)} other trials are within noise of the best."


def _command(churn: Churn, class_idx: int | None) -> str:
    """The `edm-fast generate` that makes images by these settings, with what this command was told of the sampler."""
    context = click.get_current_context()
    words = ["edm-fast", "generate"]
    for name in ("network", *SAMPLER_PARAMETERS):
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if name in churn._fields:
            if churn.S_churn > 0:
                words += [f"--{name}", f"{getattr(churn, name):g}"]
        elif given:
            words += [f"--{name}", str(context.params[name])]
    if class_idx is not None:
        words += ["--class", str(class_idx)]
    return shlex.join(words)
