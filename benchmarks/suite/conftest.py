"""The benchmark suite: pytest-benchmark times ours, and in each of its rounds every peer runs first. Its own table has
whole turns, in which what is short runs several times; figures in the file are of one call.

    pytest benchmarks/suite                 one size of each, under 3 minutes; figures go to build/suite-quick.json
    pytest benchmarks/suite --full          all, under 40 minutes; figures go to benchmarks/results/MACHINE/suite.json
    pytest benchmarks/suite --full --long   also compilers for every large network, and ADM at batch 64: hours

`-k` chooses cases; figures are merged into the file. `--benchmark-disable` compares outputs and times nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import torch  # noqa: E402
from harness import RESULTS, merge, revision, slug  # noqa: E402
from workers import Others, Worker  # noqa: E402

from edm_fast.bench import Case, MismatchError, Turns, entries, keep_memory, machine  # noqa: E402

TITLE = "CPU"
_ROUNDS, _QUICK_ROUNDS = 15, 5


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("edm_fast")
    group.addoption("--full", action="store_true", help="all cases and peers, not one size of each")
    group.addoption(
        "--long", action="store_true", help="with --full: also compilers for every large network, and ADM at batch 64"
    )
    group.addoption("--rounds", type=int, help=f"rounds at the most ({_QUICK_ROUNDS}, or {_ROUNDS} with --full)")
    group.addoption("--output", type=Path, help="the JSON file that figures are merged into")


def pytest_configure(config: pytest.Config) -> None:
    keep_memory()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "entry" in metafunc.fixturenames:
        full = metafunc.config.getoption("--full")
        # Networks have a file of their own, in which each variant is a process.
        chosen = [entry for entry in entries() if (full or entry.quick) and entry.group != "network"]
        metafunc.parametrize("entry", chosen, ids=lambda entry: entry.name)


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--full")


@pytest.fixture
def output(request: pytest.FixtureRequest, full: bool) -> Path:
    """The file of the figures."""
    given = request.config.getoption("--output")
    usual = RESULTS / slug(machine()) / "suite.json" if full else HERE.parents[1] / "build" / "suite-quick.json"
    return given or usual


@pytest.fixture
def keep(output: Path) -> Callable[[str, str, dict[str, Any]], None]:
    """Put the figures of a case into the file."""

    def write(group: str, name: str, figures: dict[str, Any]) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        merge(output, TITLE, machine(), {group: {name: {**figures, **revision()}}})

    return write


@pytest.fixture
def versus(
    benchmark: Any, full: bool, keep: Callable[..., None], request: pytest.FixtureRequest
) -> Iterator[Callable[..., None]]:
    """Measure a case: outputs, then rounds in which the peers run before ours."""

    def measure(
        group: str, name: str, case: Case, clock: Callable[..., float] | None = None, workers: Iterable[Worker] = ()
    ) -> None:
        rounds = request.config.getoption("--rounds") or (_ROUNDS if full else _QUICK_ROUNDS)
        turns = Turns(case, clock)
        try:
            turns.check()
        except MismatchError as error:
            if benchmark.enabled:
                keep(group, name, {"match": False, "reason": str(error)})
            pytest.fail(f"{name}: {error}")
        if not benchmark.enabled:
            benchmark.pedantic(case.ours)
            return
        turns.warm()
        others = Others(*workers)
        benchmark.group = group
        benchmark.pedantic(turns.run_ours, setup=turns.run_peers, rounds=min(rounds, case.most_rounds))
        for taken in benchmark.stats.stats.data:
            turns.add_ours(taken)
        figures = {**turns.figures(), "others_share": others.share()}
        benchmark.extra_info.update(figures)
        keep(group, name, figures)

    torch.manual_seed(0)
    torch._dynamo.reset()
    with torch.no_grad():
        yield measure
