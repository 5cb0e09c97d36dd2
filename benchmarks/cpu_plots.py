"""The plot of a machine: the ratio of every case over its fastest peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import svg

from edm_fast.bench.turns import fastest


def draw(rows: dict[str, dict[str, Any]], path: Path) -> Path:
    """Bars of the groups' cases with their quartiles, coloured by group; what has no time is left out."""
    bars = [
        (group, name, entry["peers"][fastest(entry)])
        for group, entries in rows.items()
        for name, entry in entries.items()
        if entry["match"]
    ]
    groups = list(dict.fromkeys(group for group, _, _ in bars))
    with plt.rc_context({**svg.STYLE, "font.size": 7}):
        figure, axes = plt.subplots(figsize=(9, 0.17 * len(bars) + 1), layout="constrained")
        for place, (group, _, peer) in enumerate(bars):
            spread = [[peer["ratio"] - peer["low"]], [peer["high"] - peer["ratio"]]]
            colour = f"C{groups.index(group) % 10}"
            axes.barh(place, peer["ratio"], color=colour, xerr=spread, error_kw={"linewidth": 0.5})
        axes.set_yticks(range(len(bars)), [name for _, name, _ in bars])
        axes.invert_yaxis()
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlabel("times as fast as the fastest peer")
        axes.margins(y=0.01)
        return svg.save(figure, path)
