"""`edm-fast bench`: how fast this installation is, against what one would run instead."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from edm_fast.bench import MismatchError, Turns, entries, keep_memory, machine
from edm_fast.bench.names import time_text
from edm_fast.bench.turns import fastest
from edm_fast.files import atomic_write


def line(name: str, figures: dict[str, Any]) -> str:
    """A case's line under the header that `bench` prints."""
    peer = fastest(figures)
    assert peer is not None
    compared, copy = figures["peers"][peer], figures.get("copy")
    rate = f"{figures['bytes'] / figures['ours_s'] / 1e9:6.1f}" if copy else " " * 6
    share = f"{copy['ratio']:5.2f}" if copy else " " * 5
    match = f"{figures['error']:.0e}"
    quartiles = f"{compared['low']:.2f}-{compared['high']:.2f}"
    times = f"{time_text(compared['s']):>9} {time_text(figures['ours_s']):>9} {compared['ratio']:6.2f} {quartiles:>12}"
    return f"{name:58} {peer:30} {times} {rate} {share} {match:>6}"


@click.command()
@click.option("--group", "groups", multiple=True, help="Only this group; may be given several times.")
@click.option("--list", "only_list", is_flag=True, help="Name the groups and cases, and measure nothing.")
@click.option("--all", "everything", is_flag=True, help="Every size, not one of each.")
@click.option("--compiled", is_flag=True, help="torch.compile as a peer too; it compiles for minutes.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Rounds of a case at the most."
)
@click.option("--threads", type=click.IntRange(min=1), default=None, help="Threads of ours and of PyTorch.")
@click.option(
    "--json", "output", type=click.Path(path_type=Path, dir_okay=False), default=None, help="Write the figures."
)
def bench(
    groups: tuple[str, ...],
    only_list: bool,
    everything: bool,
    compiled: bool,
    rounds: int,
    threads: int | None,
    output: Path | None,
) -> None:
    """Time this installation on the CPU against PyTorch, in turns, after comparing the outputs.

    A ratio above 1 says that ours is faster than the fastest peer; it is the median over rounds, with quartiles. GB/s
    are the bytes that must be read or written, and the share is the time of a copy of as many bytes over ours.
    Exits with 1 if any outputs do not match; those have no time.
    """
    known = list(entries())
    names = list(dict.fromkeys(entry.group for entry in known))
    for group in groups:
        if group not in names:
            raise click.BadParameter(f"got {group!r}; it is one of {', '.join(names)}", param_hint="--group")
    chosen = [e for e in known if (not groups or e.group in groups) and (everything or e.quick)]
    if only_list:
        for entry in chosen:
            click.echo(f"{entry.group}: {entry.name}")
        return
    if threads is not None:
        torch.set_num_threads(threads)
    keep_memory()
    where = machine()
    click.echo(", ".join(f"{name} {value}" for name, value in where.items()))
    click.echo(
        f"{'case':58} {'fastest peer':30} {'its time':>9} {'ours':>9} {'ratio':>6} {'quartiles':>12} "
        f"{'GB/s':>6} {'copy':>5} {'error':>6}"
    )
    rows: dict[str, dict[str, Any]] = {}
    for entry in tqdm(chosen, disable=None, leave=False):
        case = entry.case(compilers=compiled)
        try:
            with torch.no_grad():
                figures = Turns(case).run(rounds)
            tqdm.write(line(entry.name, figures))
        except MismatchError as error:
            figures = {"match": False, "reason": str(error)}
            tqdm.write(f"{entry.name:58} no match, no time: {error}")
        rows.setdefault(entry.group, {})[entry.name] = figures
    if output is not None:
        text = json.dumps({"machine": where, "rows": rows}, indent=2, ensure_ascii=False) + "\n"
        with atomic_write(output) as file:
            file.write(text.encode())
    if not all(figures["match"] for group_rows in rows.values() for figures in group_rows.values()):
        sys.exit(1)
