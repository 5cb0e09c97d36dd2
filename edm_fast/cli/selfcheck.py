"""`edm-fast selfcheck`: are the solvers and the noise of this installation right?"""

from __future__ import annotations

import sys

import click
import torch

from edm_fast.cli.options import Device
from edm_fast.ops.backends import cuda_state
from edm_fast.selfcheck import run


@click.command()
@click.option("--device", type=Device(), default=None, help="Check this device alone.  [default: all that work]")
def selfcheck(device: torch.device | None) -> None:
    """Check every solver with exact denoisers; exits with 1 if anything fails."""
    devices = [device] if device is not None else [torch.device("cpu")]
    if device is None and cuda_state()[0]:
        devices.append(torch.device("cuda"))
    failed = 0
    click.echo(f"{'check':34} {'device':7} {'result':6} {'wanted':20} measured")
    for check in run(devices):
        failed += not check.passed
        result = "pass" if check.passed else "FAIL"
        click.echo(f"{check.name:34} {check.device:7} {result:6} {check.wanted:20} {check.measured}")
    click.echo(f"{failed} failed" if failed else "all passed")
    sys.exit(1 if failed else 0)
