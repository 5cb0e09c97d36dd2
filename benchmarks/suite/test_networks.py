"""One forward of the inner network F, for one noise level and class labels.

Each variant runs in a process of its own, as compiled variants share caches within a process and settings such as the
instruction set hold for all of it; the processes take turns. Outputs are compared with a float64 result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from network_rows import MEMORY_ROWS, NetworkRow, network_rows
from torch import Tensor
from variants import Spec
from workers import Worker

from edm_fast.bench import Case, Peer


class Clock:
    """The sum of the seconds that ours has measured in its own process, for pytest-benchmark to read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def turn_of(self, worker: Worker) -> Callable[[], float]:
        def turn() -> float:
            taken = worker.turn()
            self.now += taken
            return taken

        return turn


CLOCK = Clock()


def expected_of(row: NetworkRow, folder: Path) -> Tensor:
    """F in float64 for the first images of the batch, whose inputs do not depend on the rest."""
    with Worker(Spec(row.network, row.checked, "reference", dtype="float64"), single=True) as reference:
        return reference.output(folder / "expected.pt")


@pytest.mark.timeout(7200)
@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("row", network_rows(), ids=lambda row: row.name)
def test_forward(
    row: NetworkRow, full: bool, request: pytest.FixtureRequest, versus: Callable[..., None], tmp_path: Path
) -> None:
    if not full and not row.quick:
        pytest.skip("--full measures it")
    long = request.config.getoption("--long")
    if row.long and not long:
        pytest.skip("--long measures it")
    expected = expected_of(row, tmp_path)
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(spec, row.single)) for name, spec in row.specs(full, long).items()}

        def output(name: str) -> Callable[[], Tensor]:
            return lambda: workers[name].output(tmp_path / "output.pt")[: row.checked]

        peers = {name: Peer(worker.turn, output(name)) for name, worker in workers.items() if name != "ours"}
        case = Case(
            CLOCK.turn_of(workers["ours"]),
            output("ours"),
            lambda: expected,
            row.bound,
            peers,
            targets=row.targets,
            most_rounds=row.rounds,
        )
        versus("network", row.name, case, lambda turn: turn(), workers.values())


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("row", MEMORY_ROWS, ids=":".join)
def test_memory(row: tuple[str, str], full: bool, keep: Callable[..., None]) -> None:
    """Bytes of activations and weights: eager in float32, and ours in both storage types."""
    if not full:
        pytest.skip("--full measures it")
    network, batch = row
    figures: dict[str, Any] = {}
    for name, kind, dtype in (
        ("eager_float32", "eager", "float32"),
        ("ours_float32", "ours", "float32"),
        ("ours_bfloat16", "ours", "bfloat16"),
    ):
        with Worker(Spec(network, int(batch), kind, dtype=dtype), single=True) as worker:
            figures[name] = worker.memory()
    assert figures["ours_bfloat16"]["weight_bytes"] < figures["ours_float32"]["weight_bytes"]
    keep("memory", f"{network}:{batch}", figures)
