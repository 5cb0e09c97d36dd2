"""Quality against cost: solvers converge as their order says, evaluations are counted, and the page says what is so."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from typing import Any

import pytest
import torch

from edm_fast.reference.exact_denoisers import GaussianDenoiser

CHURN_ROW = {"steps": 18, "evaluations": 35, "S_churn": 0.0, "cut_at": 7.456, "distances": [10.0, 12.0, 11.0]}


def curve(solver: str, levels: str, *errors: float) -> dict[str, Any]:
    evaluations = [5, 9, 19, 35][: len(errors)]
    return {"solver": solver, "levels": levels, "evaluations": evaluations, "error": list(errors)}


def case(*curves: dict[str, Any]) -> dict[str, Any]:
    reference = {"solver": "lms, order 4", "levels": "edm", "steps": 1000, "difference": {"another": 1e-6}}
    return {
        "title": "A case",
        "about": "five modes",
        "samples": 4,
        "seeds": "0 to 3",
        "reference": reference,
        "curves": list(curves),
    }


@pytest.fixture
def data() -> dict[str, Any]:
    first = case(
        curve("euler", "edm", 0.5, 0.09, 0.02, 0.02),
        curve("heun", "edm", 0.5, 0.05, 0.009, 0.0009),
        curve("heun", "vp", 0.09, 0.2, 0.05, 0.02),
        curve("euler", "vp", 0.5, 0.5, 0.5, 0.5),
        curve("heun", "edm levels, vp σ(t)", 0.5, 0.5, 0.1, 0.05),
    )
    second = case(
        curve("euler", "edm", 0.05, 0.009, 0.0005, 0.0005),
        curve("heun", "edm", 0.5, 0.05, 0.009, 0.0009),
        curve("heun", "vp", 0.01, 0.009, 0.005, 0.002),
        curve("euler", "vp", 0.5, 0.5, 0.5, 0.5),
    )
    rows = [
        CHURN_ROW,
        {**CHURN_ROW, "S_churn": 2.5, "distances": [9.0, 11.0, 9.9]},
        {**CHURN_ROW, "S_churn": 10.0, "distances": [8.0, 14.0, 11.3]},
    ]
    return {
        "versions": {"torch": "2", "edm_fast": "0"},
        "commit": "abc1234",
        "date": "2026-01-01",
        "quick": False,
        "cases": {"a": first, "b": second},
        "churn": {
            "images": 100,
            "sets": 3,
            "features": "pixels",
            "reference_images": 1797,
            "real_distances": [4.0, 6.0, 5.0],
            "rows": rows,
        },
    }


@pytest.fixture
def folder(data, tmp_path):
    (tmp_path / "quality_cost.json").write_text(json.dumps(data))
    return tmp_path


def cells(page: str, *first: str) -> list[str]:
    [line] = [line for line in page.splitlines() if line.startswith("| " + " | ".join(first) + " |")]
    return [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split(" | ")][len(first) :]


def test_every_method_takes_the_evaluations_it_is_given(load):
    quality = load("quality_methods")
    problem = quality.Problem(GaussianDenoiser(0.3, 0.5, 2, 1), torch.randn(3, 2, 1, 1, dtype=torch.float64))
    found = list(quality.methods())
    assert {method.solver for method in found} == set(quality.SOLVERS)
    assert len({(method.solver, method.levels) for method in found}) == len(found)
    for method in found:
        for evaluations in () if method.budgets else (5, 7, 11, 35):
            problem.calls = 0
            assert method.solve(problem, evaluations).isfinite().all()
            assert problem.calls == evaluations, method


@pytest.fixture
def white(load) -> tuple[Any, torch.Tensor]:
    """White noise of standard deviation s = 0.5 about m = 0.3 as a problem, and its solution: D at
    x(0.002) = m + (x(80) − m)·√((s² + 0.002²)/(s² + 80²)).
    """
    latents = torch.linspace(-2, 2, 8, dtype=torch.float64).reshape(4, 2, 1, 1)
    problem = load("quality_methods").Problem(GaussianDenoiser(0.3, 0.5, 2, 1), latents)
    share = math.sqrt((0.25 + 0.002**2) / (0.25 + 80**2))
    return problem, problem.denoise(0.3 + (80 * latents - 0.3) * share, 0.002)


SECOND_ORDER = ("heun", "alpha = 2/3", "dpm_2", "dpmpp_2s", "dpmpp_2m", "lms, order 2")


@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), *((each, 2) for each in SECOND_ORDER), ("lms, order 3", 3)]
)
def test_solvers_converge_by_their_order_to_the_exact_solution(load, white, solver, order):
    quality, cost = load("quality_methods"), load("quality_cost")
    problem, exact = white
    errors = []
    for steps in (50, 100, 200):
        found = quality.solve_on(problem, solver, quality.LEVELS[quality.EDM](steps))
        errors.append(cost.relative_errors(found, exact)[0])
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


def test_the_reference_converges_to_the_exact_solution_with_order_4(load, white):
    cost = load("quality_cost")
    problem, exact = white
    errors = [cost.relative_errors(cost.References(problem, n).solution(80.0), exact)[0] for n in (100, 200, 400)]
    assert [math.log2(coarse / fine) for coarse, fine in pairwise(errors)] == pytest.approx([4, 4], abs=0.2)
    assert errors[-1] < 1e-6
    assert all(difference < 1e-4 for difference in cost.References(problem, 400).own_errors(80.0).values())


def test_more_steps_of_the_reference_are_no_worse_in_float32(load):
    """The last step of Adams-Bashforth's method would multiply the rounding of a network; see `References`."""
    cost, cases = load("quality_cost"), load("quality_cases")
    differences = cost.References(cases.CASES["digits"].problem(1), 1000).own_errors(80.0)
    assert max(differences.values()) < 1e-5


def test_a_tiny_run_has_all_figures(load, tmp_path, data):
    cost, cases, churn = load("quality_cost"), load("quality_cases"), load("quality_churn")
    lines: list[str] = []
    for name, found in cases.CASES.items():
        figures = cost.case_figures(found, 2, [5, 7], 20, lambda method: method.solver == "heun", lines.append)
        assert all(curve["evaluations"] == [5, 7] for curve in figures["curves"])
        assert all(len(curve["error"]) == len(curve["median"]) == 2 for curve in figures["curves"])
        data["cases"][name] = figures
    data["churn"] = churn.churn_figures((2,), 70, 2, (0.0, 0.5, 2.5, 5.0), lines.append)
    distances = [row["distances"] for row in data["churn"]["rows"]]
    # 2.5 and 5 are both cut to 2 (√2 - 1).
    assert distances[2] == distances[3] not in (distances[0], distances[1])
    assert len(lines) == 3 * 10 + 4
    (tmp_path / "quality_cost.json").write_text(json.dumps(data))
    assert "Shipped digits model" in "\n".join(load("quality_report").sections(tmp_path))


def test_without_a_file_it_was_never_measured(load, tmp_path):
    report = load("quality_report")
    assert report.sections(tmp_path)[-1] == "Never measured."
    assert report.plots(tmp_path, tmp_path) == []


def test_evaluations_count_from_where_the_error_stays_low(load, folder):
    """Heun's error on vp levels is below 10 % at 5 evaluations, and above it at 9."""
    page = "\n".join(load("quality_report").sections(folder))
    first = page.split("### ")[1]
    assert cells(first, "heun") == ["**9** / **19** / **35**", "19 / – / –"]
    assert cells(first, "euler") == ["**9** / – / –", "– / – / –"]
    assert cells(first, "heun, edm levels, vp σ(t)") == ["19 / – / –"]


def test_the_advice_is_near_the_best_of_every_case(load, data, monkeypatch):
    report = load("quality_report")
    monkeypatch.setattr(report, "DEFAULT", ("heun", "vp"))
    data["cases"]["a"]["curves"].append(curve("dpmpp_2m", "edm", 0.09, 0.009, 0.009, 0.009))
    data["cases"]["b"]["curves"].append(curve("dpmpp_2m", "edm", 0.09, 0.009, 0.009, 0.009))
    advice = report.advice(data)
    first = ["**dpmpp_2m** on edm: 5 / 5", "**euler** on edm: 9 / 5", "19 / 5", "5 / 5"]
    assert cells(advice, "10 %") == first
    assert cells(advice, "1 %") == ["**dpmpp_2m** on edm: 9 / 9", "**heun** on edm: 19 / 19", "– / 5", "9 / 5"]
    assert cells(advice, "0.1 %") == [*["**heun** on edm: 35 / 35"] * 2, "– / –", "35 / 19"]


def test_what_no_solver_reaches_is_said(load, data):
    data["cases"]["a"]["curves"] = data["cases"]["a"]["curves"][:1]
    assert cells(load("quality_report").advice(data), "1 %")[0] == "nothing reaches it in every case"


def test_the_page_on_samplers_says_what_the_shipped_figures_give(load):
    report = load("quality_report")
    root = report.Path(report.__file__).parents[1]
    page = (root / "docs" / "choose-a-sampler.md").read_text()
    assert report.advice(report.load(root / "benchmarks" / "results")) in page


def test_churn_within_noise_is_called_so(load, folder):
    page = "\n".join(load("quality_report").sections(folder))
    assert "are at 5.00 ± 0.58" in page
    steps = "18 (35)"
    assert cells(page, steps, "0") == ["11.00 ± 0.58", ""]
    assert cells(page, steps, "2.5") == ["**9.97** ± 0.58", "-1.03 ± 0.03"]
    assert cells(page, steps, "10 (cut)") == ["11.10 ± 1.73", "+0.10 ± 1.16, within noise"]


def test_a_quick_run_is_not_to_be_relied_on(load, data, tmp_path):
    (tmp_path / "quality_cost.json").write_text(json.dumps({**data, "quick": True}))
    assert "not to be relied on" in "\n".join(load("quality_report").sections(tmp_path))


def test_plots_are_small_svg_with_the_same_bytes_each_time(load, folder, tmp_path):
    report = load("quality_report")
    first, second = report.plots(folder, tmp_path / "a"), report.plots(folder, tmp_path / "b")
    assert [path.name for path in first] == list(report.PLOTS)
    for one, other in zip(first, second, strict=True):
        text = one.read_text()
        assert one.read_bytes() == other.read_bytes()
        assert text.startswith("<?xml")
        assert not re.search(r"<dc:date>|<image", text)
        assert len(text) < 200_000
    assert "A case" in first[0].read_text()


def test_the_shipped_plots_are_of_the_shipped_figures(load, tmp_path):
    """Their bytes depend on matplotlib's version; what they show does not."""
    report = load("quality_report")
    shipped = report.Path(report.__file__).parent
    for path in report.plots(shipped / "results", tmp_path):
        there = (shipped / "plots" / path.name).read_text()
        markers = [
            re.findall(r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)"', text) for text in (there, path.read_text())
        ]
        assert len(markers[0]) == len(markers[1]) > 0
        for one, other in zip(*markers, strict=True):
            assert [float(value) for value in one] == pytest.approx([float(value) for value in other], abs=3)
