"""Timing in turns: outputs first, ratios within rounds. Every case of `edm-fast bench` computes what its peers do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from edm_fast.bench import Case, MismatchError, Peer, Turns, entries, machine
from edm_fast.bench.turns import COPY, copy_of, fastest, relative_error

ONES = torch.ones(4, dtype=torch.float64)
QUICK = [entry for entry in entries() if entry.quick]


def case(**changes):
    """Functions return their names, by which `Timed` knows what they take."""
    given = {
        "ours": lambda: "ours",
        "output": lambda: ONES,
        "expected": lambda: ONES,
        "bound": 1e-6,
        "peers": {"a": Peer(lambda: "a", lambda: ONES), "b": Peer(lambda: "b")},
    }
    return Case(**{**given, **changes})


class Timed:
    """A clock by what ran, which notes the order."""

    def __init__(self, **seconds):
        self.seconds, self.order = seconds, []

    def __call__(self, function):
        name = function()
        self.order.append(name)
        return self.seconds[name]


def test_ratios_are_the_peers_time_over_ours():
    figures = Turns(case(), Timed(ours=2.0, a=6.0, b=3.0)).run(4)
    assert figures["ours_s"] == 2.0
    assert {name: peer["ratio"] for name, peer in figures["peers"].items()} == {"a": 3.0, "b": 1.5}
    assert fastest(figures) == "b"
    assert fastest(figures, "a") == "a"
    assert fastest(figures, "c") is None
    assert figures["rounds"] == 4


def test_a_ratio_is_the_median_over_rounds_and_not_of_medians():
    turns = Turns(case(peers={"a": Peer(lambda: "a")}), clock=lambda function: next(times))
    times = iter([1.0, 10.0, 30.0])
    for ours in (1.0, 5.0, 10.0):
        turns.run_peers()
        turns.add_ours(ours)
    compared = turns.figures()["peers"]["a"]
    assert (compared["low"], compared["ratio"], compared["high"]) == (1.0, 2.0, 3.0)
    assert compared["s"] == 10.0


def test_each_round_runs_everything_once_and_begins_with_another_peer():
    clock = Timed(ours=1.0, a=1.0, b=1.0)
    Turns(case(), clock).run(3)
    assert clock.order == ["a", "b", "ours", "b", "a", "ours", "a", "b", "ours"]


def test_what_is_short_runs_several_times_in_its_turn(monkeypatch):
    now, calls = [0.0], {"ours": 0, "a": 0}

    def takes(name, seconds):
        def run():
            now[0] += seconds
            calls[name] += 1

        return run

    monkeypatch.setattr("edm_fast.bench.turns.time", SimpleNamespace(perf_counter=lambda: now[0]))
    tick = 2.0**-10
    short = case(ours=takes("ours", tick), peers={"a": Peer(takes("a", 2 * tick))})
    figures = Turns(short).run(4)
    # Twice to warm up, six times to know how long it takes, then four turns of 5 ms.
    assert calls == {"ours": 8 + 4 * 6, "a": 8 + 4 * 3}
    assert (figures["ours_s"], figures["calls"]) == (tick, 6)
    assert (figures["peers"]["a"]["s"], figures["peers"]["a"]["ratio"]) == (2 * tick, 2)


def test_a_run_of_parts_reports_one_of_them():
    figures = Turns(case(parts=4), Timed(ours=2.0, a=6.0, b=3.0)).run(1)
    assert figures["ours_s"] == 0.5
    assert figures["peers"]["a"]["s"] == 1.5
    assert figures["peers"]["a"]["ratio"] == 3.0


def test_rounds_are_bounded_by_the_case():
    assert Turns(case(most_rounds=2), Timed(ours=1.0, a=1.0, b=1.0)).run(50)["rounds"] == 2


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"output": lambda: ONES + 1e-3}, "ours"),
        ({"peers": {"a": Peer(lambda: "a", lambda: ONES * 1.1)}}, "a"),
        ({"output": lambda: torch.full_like(ONES, float("nan"))}, "ours"),
        ({"output": lambda: ONES[:3]}, "ours"),
        ({"output": lambda: 0 * ONES, "expected": lambda: 0 * ONES}, "ours"),
    ],
)
def test_what_does_not_match_is_named_and_not_timed(changes, name):
    clock = Timed(ours=1.0, a=1.0, b=1.0)
    with pytest.raises(MismatchError, match=rf"^{name} is off by .* of the largest value; 1e-06 is allowed$"):
        Turns(case(**changes), clock).run(3)
    assert not clock.order


def test_bytes_are_set_against_a_copy_of_as_many():
    figures = Turns(case(bytes=1 << 20, ours=lambda: None, peers={})).run(3)
    assert figures["bytes"] == 1 << 20
    assert figures["copy"]["s"] > 0
    assert COPY not in figures["peers"]
    assert "copy" not in Turns(case(bytes=100), Timed(ours=1.0, a=1.0, b=1.0)).run(1)


def test_a_copy_reads_and_writes_its_bytes():
    assert copy_of(1 << 20)().nbytes == 1 << 19


def test_errors_are_relative_to_the_largest_value():
    assert relative_error(torch.tensor([0.0, 3.0]), torch.tensor([0.5, -4.0])) == 7 / 4
    assert relative_error(torch.full([2], float("nan")), torch.ones(2)) == float("inf")


def test_names_are_unique_and_groups_have_quick_cases():
    known = list(entries())
    assert len({(entry.group, entry.name) for entry in known}) == len(known)
    assert {entry.group for entry in QUICK} == {entry.group for entry in known}


@pytest.mark.parametrize("entry", QUICK, ids=lambda entry: entry.name)
def test_the_outputs_of_a_case_match(entry):
    built = entry.case(compilers=False)
    assert built.peers
    with torch.no_grad():
        Turns(built).check()


def test_the_machine_is_described():
    assert set(machine()) == {"processor", "threads", "instruction_set", "torch", "edm_fast"}
