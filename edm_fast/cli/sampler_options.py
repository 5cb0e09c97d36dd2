"""The options of the sampler, the same for every command that makes images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from edm_fast.cli.options import Number
from edm_fast.samplers.edm import DISCRETIZATIONS, SCALINGS, SCHEDULES
from edm_fast.samplers.solvers import SOLVERS

_POSITIVE = Number(low=0, low_open=True)
SAMPLER_PARAMETERS = (
    *("steps", "sigma_min", "sigma_max", "rho", "S_churn", "S_min", "S_max", "S_noise"),
    *("solver", "disc", "schedule", "scaling"),
)
_OPTIONS = (
    click.option("--steps", type=click.IntRange(min=1), default=18, show_default=True, help="Number of steps."),
    click.option("--sigma_min", type=_POSITIVE, help="Lowest noise level.  [default: by --disc]"),
    click.option("--sigma_max", type=_POSITIVE, help="Highest noise level.  [default: by --disc]"),
    click.option("--rho", type=_POSITIVE, default=7, show_default=True, help="Exponent of the time steps."),
    click.option("--S_churn", "S_churn", type=Number(low=0), default=0, show_default=True, help="Amount of churn."),
    click.option(
        "--S_min", "S_min", type=Number(), default=0, show_default=True, help="Churn at this noise and above."
    ),
    click.option(
        "--S_max", "S_max", type=Number(finite=False), default=math.inf, show_default=True, help="… and below."
    ),
    click.option("--S_noise", "S_noise", type=Number(low=0), default=1, show_default=True, help="Factor on the noise."),
    click.option("--solver", type=click.Choice(SOLVERS), default="heun", show_default=True),
    click.option("--disc", type=click.Choice(DISCRETIZATIONS), default="edm", show_default=True, help="Noise levels."),
    click.option("--schedule", type=click.Choice(SCHEDULES), default="linear", show_default=True, help="sigma(t)."),
    click.option("--scaling", type=click.Choice(SCALINGS), default="none", show_default=True, help="s(t)."),
)

_Command = TypeVar("_Command", bound=Callable[..., Any])


def sampler_options(command: _Command) -> _Command:
    """Give the command the parameters of SAMPLER_PARAMETERS."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
