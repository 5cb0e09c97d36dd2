"""What `edm-fast tune` reads and writes: lists of numbers, and the file of its trials."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edm_fast.evaluation import Churn, Trial
from edm_fast.files import atomic_write


def number(value: Any) -> Any:
    """A float as JSON holds it, which has no infinity."""
    return str(value) if isinstance(value, float) and math.isinf(value) else value


class Numbers(click.ParamType):
    """'0,2.5,inf' → (0.0, 2.5, inf)."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 0,2.5,10", param, ctx)


class TrialsFile:
    """The JSON file of a search: its settings and the trials so far, as a whole after each.

    Args:
        settings: what the distances depend on, by name.

    Raises ValueError if the file is of another kind, or of other settings: says which differ.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, object]) -> None:
        self._path, self._settings = path, dict(settings)
        self.trials: list[Trial] = []
        if path is None or not path.exists():
            return
        try:
            there = json.loads(path.read_text())
            found = there["settings"]
            self.trials = [
                Trial(Churn(*(float(entry[name]) for name in Churn._fields)), tuple(map(float, entry["distances"])))
                for entry in there["trials"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a file of edm-fast tune ({type(error).__name__}: {error})") from None
        names = [name for name in {**found, **self._settings} if found.get(name) != self._settings.get(name)]
        if names:
            difference = ", ".join(
                f"{name} is {found.get(name)} there, {self._settings.get(name)} here" for name in names
            )
            raise ValueError(f"{path} belongs to other settings, use another file: {difference}")

    def write(self, trials: list[Trial]) -> None:
        if self._path is None:
            return
        rows = [
            # JSON has no infinity.
            {**{name: number(value) for name, value in trial.churn._asdict().items()}, "distances": trial.distances}
            for trial in trials
        ]
        text = json.dumps({"settings": self._settings, "trials": rows}, indent=2)
        with atomic_write(self._path) as file:
            file.write(f"{text}\n".encode())
