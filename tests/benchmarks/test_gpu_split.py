"""What is measured of convolutions by split sums: both sides checked, bits too, and every shape of a network."""

from __future__ import annotations

import pytest
import torch

import edm_fast
from edm_fast.ops.conv2d_split import PACK


@pytest.fixture
def split(load, monkeypatch):
    """The stage; on the CPU a network by split sums is the prepared one, whose bits do not depend on the batch."""
    module = load("gpu_split")
    monkeypatch.setattr(module, "split", lambda net: edm_fast.prepare(net, dtype=torch.bfloat16))
    return module


def test_a_row_and_every_shape_come_to_figures(split, run, kept, capsys):
    assert split.measure(run, ["adm:3"])
    entries = kept("split")
    assert set(entries) == {"adm:3, network", *(f"adm:1, {split.shape_name(shape)}" for shape in split.shapes("adm"))}
    for entry in entries.values():
        assert entry["match"]
        assert 0 < entry["error"] < entry["error_bound"]
        assert entry["ratio"] == 1.0
    assert "adm:3, network: cuDNN" in capsys.readouterr().out


def test_shapes_are_those_of_the_networks_convolutions(split, load):
    found = split.shapes("ddpmpp")
    assert len(found) == len(set(found)) > 5
    assert {shape.kernel for shape in found} == {1, 3}
    assert all(shape.channels % PACK == 0 for shape in found)
    assert split.Shape(16, 16, 8, 8, 3, 1) in found


@pytest.mark.parametrize(("factor", "drift", "words"), [(1.5, 0.0, "is off by"), (1.0, 0.01, "elements differ")])
def test_what_is_wrong_gets_no_time(split, run, kept, monkeypatch, factor, drift, words):
    """Far from float64, or near it and different in every run."""
    plain, calls = edm_fast.plan.Prepared.run, []

    def spoilt(self, x, rows):
        calls.append(0)
        return plain(self, x, rows) * (factor + drift * len(calls))

    monkeypatch.setattr(edm_fast.plan.Prepared, "run", spoilt)
    assert not split._attempt(run, "ddpmpp:2", "network", lambda: split.measure_network(run, "ddpmpp:2"))
    entry = kept("split")["ddpmpp:2, network"]
    assert entry["match"] is False
    assert words in entry["reason"]


def test_the_report_shows_what_was_measured_and_what_was_not(load, split, run, kept):
    report = load("gpu_report")
    assert "never measured" in report.split({})
    split.measure(run, ["ddpmpp:1"])
    text = report.split(kept("split"))
    assert "3×3 1 × 16×8×8 bfloat16 to 16" in text
    assert "1.00" in text


def test_a_dry_run_says_what_it_would_do(split):
    lines = list(split.describe([]))
    assert any("a forward of ddpmpp:16 by split sums" in line for line in lines)
    assert any("convolutions of adm" in line for line in lines)
