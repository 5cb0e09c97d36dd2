"""edm-fast bench: its table, its file, and what does not match."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from click.testing import CliRunner

import edm_fast
from edm_fast.bench import Case, Entry, Peer
from edm_fast.cli import main

ONES = torch.ones(4)


def entry(output=ONES, name="a case"):
    def build():
        peers = {"a peer": Peer(lambda: None), "a compiler": Peer(lambda: 1 / 0, compiles=True)}
        return Case(lambda: None, lambda: output, lambda: ONES, 1e-6, peers, bytes=1 << 20)

    return Entry("a group", name, build, quick=True)


@pytest.fixture
def run(monkeypatch):
    def invoke(*arguments, known=None, expect=0):
        if known is not None:
            monkeypatch.setattr(importlib.import_module("edm_fast.cli.bench"), "entries", lambda: iter(known))
        result = CliRunner().invoke(main, ["bench", *map(str, arguments)])
        assert result.exit_code == expect, result.output
        return result.output

    return invoke


def test_a_line_names_the_peer_and_the_ratio(run, tmp_path):
    output = run("--rounds", 3, "--json", tmp_path / "figures.json", known=[entry()])
    [line] = [line for line in output.splitlines() if line.startswith("a case")]
    assert "a peer" in line
    data = json.loads((tmp_path / "figures.json").read_text())
    figures = data["rows"]["a group"]["a case"]
    assert data["machine"]["edm_fast"] == edm_fast.__version__
    assert figures["match"]
    assert figures["rounds"] == 3
    assert set(figures["peers"]) == {"a peer"}
    assert f"{figures['peers']['a peer']['ratio']:.2f}" in line


def test_outputs_that_differ_have_no_time_and_fail(run, tmp_path):
    known = [entry(ONES + 1, "wrong"), entry()]
    output = run("--json", tmp_path / "figures.json", known=known, expect=1)
    assert "no match, no time: ours is off by 1 of the largest value; 1e-06 is allowed" in output
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]["a group"]
    assert "ours_s" not in rows["wrong"]
    assert rows["a case"]["match"]


def test_cases_are_listed_and_chosen_by_group(run):
    groups = {line.split(":")[0] for line in run("--list").splitlines()}
    assert {"randn", "network", "sampling", "checkpoint", "noise augmentation"} <= groups
    assert {line.split(":")[0] for line in run("--list", "--group", "randn").splitlines()} == {"randn"}
    assert len(run("--list", "--all").splitlines()) > len(run("--list").splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--group", "nothing"], "got 'nothing'; it is one of randn, solver_step,"),
        (["--rounds", "0"], "0 is not in the range x>=1"),
        (["--threads", "-1"], "-1 is not in the range x>=1"),
    ],
)
def test_bad_options_are_refused(run, arguments, message):
    assert message in " ".join(run(*arguments, expect=2).split())


def test_real_cases_run(run):
    threads = torch.get_num_threads()
    output = run("--group", "randn", "--rounds", 1, "--threads", threads)
    assert output.count("torch.randn") == 2
