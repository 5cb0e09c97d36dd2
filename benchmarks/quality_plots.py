"""The plots of quality against cost, as SVG with the same bytes for the same figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import svg
from quality_report import churn_rows, estimate

_STYLE = {
    **svg.STYLE,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
}
_MARKERS = "osD^vP*X<>hd"


def draw(data: dict[str, Any], target: Path) -> list[Path]:
    """Draw all plots; returns their paths."""
    with plt.rc_context(_STYLE):
        return [
            svg.save(_errors(data, _of_solvers), target / "quality_solvers.svg"),
            svg.save(_errors(data, _of_levels), target / "quality_levels.svg"),
            svg.save(_churn(data["churn"]), target / "quality_churn.svg"),
        ]


def _of_solvers(curve: dict[str, Any], edm: str) -> str | None:
    """Every solver on EDM's levels, or on its own."""
    return curve["solver"] if curve["levels"] in (edm, "its own") else None


def _of_levels(curve: dict[str, Any], edm: str) -> str | None:
    """Heun's method, whose σ(t) may vary, on every sequence of levels."""
    return curve["levels"] if curve["solver"] == "heun" else None


def _errors(data: dict[str, Any], label_of: Any) -> Any:
    """A panel per case, with a curve for each label."""
    cases = list(data["cases"].values())
    figure, panels = plt.subplots(1, len(cases), figsize=(3.6 * len(cases), 3.9), squeeze=False, layout="constrained")
    for panel, case in zip(panels[0], cases, strict=True):
        chosen = [(label_of(curve, case["reference"]["levels"]), curve) for curve in case["curves"]]
        chosen = [(label, curve) for label, curve in chosen if label is not None]
        for index, (label, curve) in enumerate(chosen):
            style = {"color": f"C{index % 10}", "marker": _MARKERS[index % len(_MARKERS)]}
            style["linestyle"] = "-" if index < 10 else "--"
            panel.loglog(curve["evaluations"], curve["error"], label=label, **style)
        panel.set(title=case["title"], xlabel="network evaluations", ylim=(_lowest(case), 5))
        ticks = [5, 10, 20, 50, 100, 200]
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.set_xticks([], minor=True)
    panels[0][0].set_ylabel("error, relative root mean square")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return figure


def _lowest(case: dict[str, Any]) -> float:
    return 0.5 * min(min(curve["error"]) for curve in case["curves"])


def _churn(churn: dict[str, Any]) -> Any:
    """The distance with its standard error for each number of steps, and the difference from S_churn = 0."""
    figure, (distances, differences) = plt.subplots(1, 2, figsize=(7.2, 3), layout="constrained")
    steps = list(dict.fromkeys(row["steps"] for row in churn["rows"]))
    for index, count in enumerate(steps):
        rows = [(row, *of) for row, *of in churn_rows(churn) if row["steps"] == count]
        x = [row["S_churn"] for row, _, _ in rows]
        style: dict[str, Any] = {"color": f"C{index}", "marker": _MARKERS[index], "capsize": 2}
        for panel, place in ((distances, 1), (differences, 2)):
            values = [row[place] for row in rows]
            errors = [value.standard_error or 0.0 for value in values]
            panel.errorbar(x, [value.mean for value in values], errors, label=f"{count} steps", **style)
    real = estimate(churn["real_distances"]).mean
    distances.axhline(real, color="0.4", linestyle=":", label="real digits")
    differences.axhline(0, color="0.4", linestyle=":")
    distances.set(title="Fréchet distance", xlabel="S_churn")
    differences.set(title="less that of S_churn = 0, same seeds", xlabel="S_churn")
    for panel in (distances, differences):
        panel.set_xscale("symlog", linthresh=2.5)
        ticks = sorted({row["S_churn"] for row in churn["rows"]})
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    distances.legend(frameon=False)
    return figure
