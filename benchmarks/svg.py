"""Plots as SVG with the same bytes for the same figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STYLE = {
    "svg.hashsalt": "edm_fast",  # element ids follow from it and not from chance
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8,
}


def save(figure: Any, path: Path) -> Path:
    """Write the figure and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    # Lines of paths end in blanks, which differ from nothing but checks of whitespace.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
    return path
