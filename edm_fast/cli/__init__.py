"""The command line: `edm-fast`, or `python -m edm_fast`."""

from __future__ import annotations

import logging

import click

import edm_fast
from edm_fast.cli.bench import bench
from edm_fast.cli.convert import convert
from edm_fast.cli.evaluate import evaluate
from edm_fast.cli.generate import generate
from edm_fast.cli.info import info
from edm_fast.cli.reconstruct_ema import reconstruct_ema
from edm_fast.cli.selfcheck import selfcheck
from edm_fast.cli.train import train
from edm_fast.cli.tune import tune


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(edm_fast.__version__, prog_name="edm-fast")
def main() -> None:
    """Sample, evaluate and train EDM diffusion models (Karras et al. 2022)."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")


for command in (generate, evaluate, tune, train, reconstruct_ema, convert, bench, info, selfcheck):
    main.add_command(command)
