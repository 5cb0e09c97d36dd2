"""What a run reports: a JSON line per interval, the loss by noise level, and a plot of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm_fast.files import atomic_write, naming

# Bins of ln σ; what lies beyond is counted in the first and the last.
_LOW, _HIGH, _BINS = math.log(1e-3), math.log(1e3), 48


class LossBySigma:
    """Sums of the loss per element in bins of ln σ: `sums` float64 [3, bins] holds images, losses and their squares."""

    def __init__(self) -> None:
        self.sums = torch.zeros(3, _BINS, dtype=torch.float64)

    def add(self, sigma: Tensor, loss: Tensor) -> None:
        """Take in σ [N] and the mean loss of an element [N]; what is not finite counts as an image alone."""
        place = ((sigma.detach().cpu().double().log() - _LOW) / (_HIGH - _LOW) * _BINS).nan_to_num()
        index = place.long().clamp(0, _BINS - 1)
        values = loss.detach().cpu().double().nan_to_num(0, 0, 0)
        for row, what in zip(self.sums, (torch.ones_like(values), values, values**2), strict=True):
            row.index_add_(0, index, what)

    @property
    def images(self) -> int:
        return int(self.sums[0].sum())

    @property
    def mean(self) -> float:
        """Of all images; NaN without any."""
        return float(self.sums[1].sum() / self.sums[0].sum())

    def rows(self) -> list[list[float]]:
        """[σ at the middle, images, mean, standard deviation] of every bin with images."""
        rows = []
        for index in self.sums[0].nonzero().flatten().tolist():
            count, total, squares = self.sums[:, index].tolist()
            mean = total / count
            sigma = math.exp(_LOW + (index + 0.5) * (_HIGH - _LOW) / _BINS)
            rows.append([sigma, count, mean, math.sqrt(max(squares / count - mean**2, 0.0))])
        return rows


class RunLog:
    """JSON lines, one per interval, each with `images`, the images seen at its end."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def records(self) -> list[dict[str, Any]]:
        """All lines that are whole."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("images"), int):
                found.append(record)
        return found

    def rewind(self, images: int) -> None:
        """Drop the lines of what comes after so many images: a run that goes on from there writes them again."""
        kept = [record for record in self.records() if record["images"] <= images]
        if self.path.exists():
            with atomic_write(self.path) as file:
                file.write("".join(json.dumps(record) + "\n" for record in kept).encode())

    def append(self, record: dict[str, Any]) -> None:
        with naming(self.path), self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def plot_loss_by_sigma(records: list[dict[str, Any]], path: Path) -> bool:
    """Draw the loss against σ, of the first, middle and last interval; False without matplotlib, which is optional."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for index in sorted({0, len(records) // 2, len(records) - 1}):
        sigma, _, mean, _ = zip(*records[index]["loss_by_sigma"], strict=True)
        axes.plot(sigma, mean, marker=".", label=f"{records[index]['images'] / 1000:g} thousand images")
    axes.set(xscale="log", yscale="log", xlabel="σ", ylabel="mean weighted loss of an element")
    axes.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return True
