"""Cells and tables of Markdown for RESULTS.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

NEVER = "never measured"


def size(value: float) -> str:
    """Bytes in MB, or GB from 1 GB on."""
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def verdict(ratio: float | None, target: float | None) -> str:
    """The ratio, and whether it reaches what is wanted of it."""
    shown = "not measured" if ratio is None else f"{ratio:.2f}"
    if target is None:
        return shown
    if ratio is None:
        return f"{shown} (wanted: {target:g})"
    return f"**{shown}** (met: {target:g})" if ratio >= target else f"{shown} (**missed**: {target:g})"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def made_by(*commands: str) -> str:
    return "```\n" + "\n".join(commands) + "\n```"


def quartiles(entry: dict[str, Any]) -> str:
    return f"{entry['ratio_low']:.2f} … {entry['ratio_high']:.2f}"
