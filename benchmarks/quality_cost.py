"""Quality against cost: the error of every solver and schedule at 5 to 255 evaluations, and what churn does.

The error of a sample is its difference from the solution of 1,000 steps of Adams-Bashforth's method of order 4, the
highest order here, to σ = 0.002 and one evaluation there, from the same latents; over samples and pixels the root mean
square, relative to that of the solution. How exact that solution is in turn is measured by solutions of twice the steps
and of Heun's method. All figures follow from seeds; no times are taken.

Run: python benchmarks/quality_cost.py            write results/quality_cost.json (about 15 minutes on one core)
     python benchmarks/quality_cost.py --quick    fewer samples, solvers' evaluations and images; writes no file unless
                                                  --output names one (under a minute)
     --part cases or --part churn                 one half only; the other stays what it is in the file
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from quality_cases import CASES, Case
from quality_churn import churn_figures
from quality_methods import EDM, SIGMA_MAX, SIGMA_MIN, Method, Problem, methods, reference_solution, solve_on

import edm_fast
from edm_fast.samplers.schedules import edm_sigmas

EVALUATIONS = (5, 7, 9, 11, 15, 19, 25, 35, 51, 79, 127, 255)
REFERENCE_STEPS = 1000
REFERENCE = ("lms, order 4", EDM)


def relative_errors(found: torch.Tensor, solution: torch.Tensor) -> tuple[float, float]:
    """Root mean square of found - solution over everything, and the median of those of the samples; both over the root
    mean square of the solution. Three digits, which is more than another machine would repeat.
    """
    each = (found - solution).square().flatten(1).mean(dim=1)
    scale = solution.square().mean()
    return _three_digits((each.mean() / scale).sqrt()), _three_digits((each.median() / scale).sqrt())


def _three_digits(value: torch.Tensor) -> float:
    return float(f"{float(value):.3g}")


class References:
    """Solutions of a problem by many steps from the levels that methods start at."""

    def __init__(self, problem: Problem, steps: int) -> None:
        self._problem, self._steps = problem, steps
        self._solutions: dict[float, torch.Tensor] = {}

    def solution(self, start: float) -> torch.Tensor:
        if start not in self._solutions:
            self._solutions[start] = self._solve(start, REFERENCE[0], self._steps)
        return self._solutions[start]

    def own_errors(self, start: float) -> dict[str, float]:
        """How far the solution is from others that should be at least as good, or nearly."""
        others = {
            f"{REFERENCE[0]}, {2 * self._steps} steps": self._solve(start, REFERENCE[0], 2 * self._steps),
            f"heun, {2 * self._steps} steps": self._solve(start, "heun", 2 * self._steps),
        }
        return {name: relative_errors(other, self.solution(start))[0] for name, other in others.items()}

    def _solve(self, start: float, solver: str, steps: int) -> torch.Tensor:
        sigmas = edm_sigmas(steps, SIGMA_MIN, start)
        if solver == REFERENCE[0]:
            return reference_solution(self._problem, sigmas)
        return solve_on(self._problem, solver, sigmas)


def curve(method: Method, problem: Problem, references: References, evaluations: Sequence[int]) -> dict[str, Any]:
    """The errors of a method; its evaluations are counted as they happen."""
    counted, errors, medians = [], [], []
    for budget in method.budgets or evaluations:
        problem.calls = 0
        found = method.solve(problem, budget)
        counted.append(problem.calls)
        error, median = relative_errors(found, references.solution(method.start(budget)))
        errors.append(error)
        medians.append(median)
    return {
        "solver": method.solver,
        "levels": method.levels,
        "evaluations": counted,
        "error": errors,
        "median": medians,
    }


def case_figures(
    case: Case,
    samples: int,
    evaluations: Sequence[int],
    reference_steps: int,
    chosen: Callable[[Method], bool] = lambda _: True,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """What the file has for a case."""
    problem = case.problem(samples)
    references = References(problem, reference_steps)
    curves = []
    for method in filter(chosen, methods()):
        curves.append(curve(method, problem, references, evaluations))
        say(f"{case.title}: {method.solver}, {method.levels}: {curves[-1]['error']}")
    return {
        "title": case.title,
        "about": case.about,
        "samples": samples,
        "seeds": f"0 to {samples - 1}",
        "reference": {
            "solver": REFERENCE[0],
            "levels": REFERENCE[1],
            "steps": reference_steps,
            "difference": references.own_errors(SIGMA_MAX),
        },
        "curves": curves,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a look at everything, not figures to keep")
    parser.add_argument("--part", choices=["cases", "churn"], help="measure this half only")
    parser.add_argument("--output", type=Path, help="the file to write")
    arguments = parser.parse_args()
    quick = arguments.quick
    output = arguments.output or (None if quick else harness.RESULTS / "quality_cost.json")
    data: dict[str, Any] = json.loads(output.read_text()) if output is not None and output.exists() else {}
    data |= {
        "title": "Quality against cost",
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "edm_fast": edm_fast.__version__},
        **harness.revision(),
        "quick": quick,
    }
    if arguments.part in (None, "cases"):
        data["cases"] = {name: _case(case, quick) for name, case in CASES.items()}
    if arguments.part in (None, "churn"):
        data["churn"] = churn_figures((4, 8), 70, 2) if quick else churn_figures((8, 18, 32), 1000, 4)
    if output is not None:
        harness.write(output, data)
    return 0


def _case(case: Case, quick: bool) -> dict[str, Any]:
    if quick:
        return case_figures(case, case.quick, EVALUATIONS[2:8:2], REFERENCE_STEPS // 10)
    return case_figures(case, case.samples, EVALUATIONS, REFERENCE_STEPS)


if __name__ == "__main__":
    raise SystemExit(main())
