"""The section of RESULTS.md on quality against cost, from results/quality_cost.json alone; its plots likewise.

`sections(folder)` and `plots(folder, target)` are what benchmarks/report.py calls. Without the file the section says
that nothing was measured, and there are no plots.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tables import made_by, table

from edm_fast.evaluation.tune import Estimate, estimate

FILE = "quality_cost.json"
THRESHOLDS = (0.1, 0.01, 0.001)
DEFAULT = ("heun", "edm, ρ = 7")
OF_SAMPLE = ("euler", "heun", "alpha = 2/3", "alpha = 1/2")
COMMAND = made_by("python benchmarks/quality_cost.py")
PLOTS = {
    "quality_solvers.svg": "error against evaluations, every solver",
    "quality_levels.svg": "error against evaluations, every sequence of noise levels",
    "quality_churn.svg": "Fréchet distance against S_churn",
}

Pair = tuple[str, str]


def sections(folder: Path) -> list[str]:
    """The paragraphs of the section, in Markdown."""
    data = load(folder)
    parts = ["## Quality against cost", COMMAND]
    if data is None:
        return [*parts, "Never measured."]
    if data["quick"]:
        parts.append("**Of a quick run, with few samples: not to be relied on.**")
    parts += [INTRODUCTION, _versions(data), f"![{PLOTS['quality_solvers.svg']}](plots/quality_solvers.svg)"]
    parts += [f"![{PLOTS['quality_levels.svg']}](plots/quality_levels.svg)", advice(data)]
    for case in data["cases"].values():
        parts += [f"### {case['title']}", about(case), case_table(case)]
    parts += ["### Churn", churn_text(data["churn"]), churn_table(data["churn"])]
    return [*parts, f"![{PLOTS['quality_churn.svg']}](plots/quality_churn.svg)"]


def plots(folder: Path, target: Path) -> list[Path]:
    """Draw the SVG files of PLOTS into `target`; the same bytes for the same file of figures."""
    data = load(folder)
    if data is None:
        return []
    import quality_plots  # needs matplotlib, which the page does not

    return quality_plots.draw(data, target)


INTRODUCTION = """The smallest number of network evaluations at which the error is at most 10 %, 1 % and 0.1 %, and at
all larger numbers measured too; bold where no other solver and levels need fewer. The error is the root mean square of
the difference from a solution of many steps from the same latents, over that of the solution; a sample that ends in
another mode counts with all of its distance. All start at σ = 80 and
end at 0.002. – says that it was not reached. Samplers that draw noise have no such error."""


def load(folder: Path) -> dict[str, Any] | None:
    path = folder / FILE
    return json.loads(path.read_text()) if path.exists() else None


def reached(curve: dict[str, Any], threshold: float) -> int | None:
    """The smallest number of evaluations from which on the error is at most the threshold; None if there is none."""
    found = None
    for evaluations, error in sorted(zip(curve["evaluations"], curve["error"], strict=True), reverse=True):
        if not error <= threshold:
            break
        found = evaluations
    return found


def needed(case: dict[str, Any], threshold: float) -> dict[Pair, int]:
    """Solver and levels → what they need, of those that reach the threshold."""
    counts = {(curve["solver"], curve["levels"]): reached(curve, threshold) for curve in case["curves"]}
    return {pair: count for pair, count in counts.items() if count is not None}


def advice(data: dict[str, Any]) -> str:
    """What to take for each threshold, as a table: of everything, and of what `edm_fast.sample` has.

    It is the solver and levels whose evaluations are nearest to the least of every case.
    """
    cases = list(data["cases"].values())
    rows = []
    for threshold in THRESHOLDS:
        found = [needed(case, threshold) for case in cases]
        ours = [{pair: count for pair, count in case.items() if pair[0] in OF_SAMPLE} for case in found]
        default = [case.get(DEFAULT) for case in found]
        least = [min(case.values(), default=None) for case in found]
        rows.append([f"{100 * threshold:g} %", _choice(found), _choice(ours), _counts(default), _counts(least)])
    titles = " / ".join(case["title"] for case in cases)
    header = ["Error", "Take", "Of what `edm_fast.sample` has", "Its default, heun on edm levels", "Least of each case"]
    return f"Evaluations for {titles}:\n\n" + table(header, rows)


def _choice(cases: Sequence[dict[Pair, int]]) -> str:
    choice = choose(cases)
    if choice is None:
        return "nothing reaches it in every case"
    (solver, levels), counts = choice
    return f"**{solver}** on {levels}: {_counts(counts)}"


def _counts(values: Iterable[int | None]) -> str:
    return " / ".join("–" if value is None else str(value) for value in values)


def choose(cases: Sequence[dict[Pair, int]]) -> tuple[Pair, list[int]] | None:
    """The pair whose evaluations, over the least of each case, are smallest in its worst case, then on average; with
    its evaluations. None if no pair is in all cases.
    """
    if not all(cases):
        return None
    best = [min(case.values()) for case in cases]

    def excess(pair: Pair) -> tuple[float, float]:
        ratios = [case[pair] / least for case, least in zip(cases, best, strict=True)]
        return max(ratios), statistics.fmean(ratios)

    common = [pair for pair in cases[0] if all(pair in case for case in cases)]
    if not common:
        return None
    pair = min(common, key=excess)
    return pair, [case[pair] for case in cases]


def listed(values: Iterable[object]) -> str:
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}" if most else last


def about(case: dict[str, Any]) -> str:
    reference = case["reference"]
    differences = listed(f"{value:.1e} from {name}" for name, value in reference["difference"].items())
    return (
        f"{case['about'].capitalize()}. {case['samples']} samples, seeds {case['seeds']}. The solution: "
        f"{reference['solver']} on {reference['steps']} {reference['levels']} levels; it differs by {differences}. The "
        f"smallest error measured is {min(min(curve['error']) for curve in case['curves']):.1e}."
    )


def case_table(case: dict[str, Any]) -> str:
    """Rows: solvers; columns: levels. Levels that few solvers have come as rows of their own."""
    solvers = list(dict.fromkeys(curve["solver"] for curve in case["curves"]))
    by_levels: dict[str, set[str]] = {}
    for curve in case["curves"]:
        by_levels.setdefault(curve["levels"], set()).add(curve["solver"])
    widest = max(map(len, by_levels.values()))
    columns = [levels for levels, of in by_levels.items() if len(of) == widest]
    counts = [needed(case, threshold) for threshold in THRESHOLDS]

    def cell(pair: Pair) -> str:
        shown = []
        for count in counts:
            value = count.get(pair)
            best = value is not None and value == min(count.values())
            shown.append("–" if value is None else f"**{value}**" if best else str(value))
        return " / ".join(shown)

    rows = [
        [solver, *(cell((solver, levels)) for levels in columns)]
        for solver in solvers
        if any(solver in by_levels[levels] for levels in columns)
    ]
    others = [
        [f"{solver}, {levels}", cell((solver, levels))]
        for levels in by_levels
        if levels not in columns
        for solver in solvers
        if solver in by_levels[levels]
    ]
    tables = [table(["10 % / 1 % / 0.1 %", *columns], rows)]
    return "\n\n".join(tables + ([table(["Others", "10 % / 1 % / 0.1 %"], others)] if others else []))


def churn_text(churn: dict[str, Any]) -> str:
    real = estimate(churn["real_distances"])
    return (
        f"Fréchet distance of {churn['images']} images from all {churn['reference_images']} digits; features: "
        f"{churn['features']}. Mean over {churn['sets']} sets of seeds ± standard error. As many real digits, drawn "
        f"with repetition, are at {real.mean:.2f} ± {_error(real)}. All rows have the same seeds, so the difference "
        "from S_churn = 0 is known better than the distance; it is within noise if Student's interval of 95 % holds 0. "
        "S_churn above 0.414 times the number of steps counts as that."
    )


def churn_rows(churn: dict[str, Any]) -> list[tuple[dict[str, Any], Estimate, Estimate]]:
    """Each row with its distance, and its difference from S_churn = 0 with as many steps."""
    without = {row["steps"]: row["distances"] for row in churn["rows"] if row["S_churn"] == 0}
    found = []
    for row in churn["rows"]:
        differences = [a - b for a, b in zip(row["distances"], without[row["steps"]], strict=True)]
        found.append((row, estimate(row["distances"]), estimate(differences)))
    return found


def churn_table(churn: dict[str, Any]) -> str:
    lines = []
    least: dict[int, float] = {}
    for row, distance, _ in churn_rows(churn):
        least[row["steps"]] = min(distance.mean, least.get(row["steps"], distance.mean))
    for row, distance, difference in churn_rows(churn):
        mean = f"{distance.mean:.2f}"
        mean = f"**{mean}**" if distance.mean == least[row["steps"]] else mean
        verdict = "" if row["S_churn"] == 0 else f"{difference.mean:+.2f} ± {_error(difference)}{_noise(difference)}"
        cut = " (cut)" if row["S_churn"] > row["cut_at"] else ""
        steps = f"{row['steps']} ({row['evaluations']})"
        lines.append([steps, f"{row['S_churn']:g}{cut}", f"{mean} ± {_error(distance)}", verdict])
    return table(["Steps (evaluations)", "S_churn", "Distance", "Less that of S_churn = 0"], lines)


def _error(value: Estimate) -> str:
    return "?" if value.standard_error is None else f"{value.standard_error:.2f}"


def _noise(difference: Estimate) -> str:
    return {True: ", within noise", False: "", None: ", one set of seeds: unknown"}[difference.within_noise]


def _versions(data: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    return f"{versions}; commit {data['commit']}, {data['date']}."
