"""What is measured of convolutions by split sums: both sides checked, bits too, and every shape of a network."""

from __future__ import annotations

import functools

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


@pytest.mark.parametrize("row", ["adm:3", "ddpmpp:1"])
def test_a_row_and_every_shape_come_to_figures(split, run, kept, capsys, monkeypatch, row):
    monkeypatch.setattr(split, "measure_sampling", functools.partial(split.measure_sampling, num_steps=2))
    assert split.measure(run, [row])
    entries = kept("split")
    name = row.split(":")[0]
    expected = {f"{row}, network", *(f"{name}:1, {split.shape_name(shape)}" for shape in split.shapes(name))}
    # Where a time is wanted.
    assert set(entries) == expected | ({"ddpmpp:1, sampling"} if row == "ddpmpp:1" else set())
    for entry in entries.values():
        assert entry["match"]
        assert 0 < entry["error"] < entry["error_bound"]
        assert entry["ratio"] == 1.0
    assert f"{row}, network: cuDNN" in capsys.readouterr().out


def test_shapes_are_those_of_the_networks_convolutions(split, load):
    found = split.shapes("ddpmpp")
    assert len(found) == len(set(found)) > 5
    assert {shape.kernel for shape in found} == {1, 3}
    assert all(shape.channels % PACK == 0 for shape in found)
    assert split.Shape(16, 16, 8, 8, 3, 1) in found


def test_a_network_that_is_wrong_gets_no_time(split, run, kept, monkeypatch):
    plain = edm_fast.plan.Prepared.run
    monkeypatch.setattr(edm_fast.plan.Prepared, "run", lambda self, x, rows: plain(self, x, rows) * 1.5)
    assert not split._attempt(run, "ddpmpp:2", "network", lambda: split.measure_network(run, "ddpmpp:2"))
    entry = kept("split")["ddpmpp:2, network"]
    assert entry["match"] is False
    assert "is off by" in entry["reason"]


def test_bits_of_a_network_are_for_the_record(split, run, monkeypatch):
    plain, calls = edm_fast.plan.Prepared.run, []

    def drifting(self, x, rows):
        calls.append(0)
        # The third call is the repeat, the fourth that of one image.
        return plain(self, x, rows) * (1 + {3: 0.01, 4: 0.02}.get(len(calls), 0.0))

    monkeypatch.setattr(edm_fast.plan.Prepared, "run", drifting)
    entry = split.measure_network(run, "ddpmpp:2")
    assert entry["match"]
    assert entry["repeats_differing"] > 0
    assert entry["splits_differing"] > 0


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda out: out * 1.5, "is off by"),
        (lambda out: out * (1 + 0.01 * out.shape[0]), "elements differ"),
    ],
    ids=["wrong", "depends on the batch"],
)
def test_a_convolution_that_is_wrong_gets_no_time(split, run, monkeypatch, spoil, words):
    plain = split.conv2d_split

    def spoilt(*given, **options):
        out, moments = plain(*given, **options)
        return spoil(out), moments

    monkeypatch.setattr(split, "conv2d_split", spoilt)
    with pytest.raises(split.MismatchError, match=words):
        split.measure_shape(run, split.Shape(16, 16, 8, 8, 3, 1))


def test_sampling_something_else_gets_no_time(split, run, monkeypatch):
    monkeypatch.setattr(split.Subject, "sample", lambda self, net: -self.reference(self.denoiser(torch.float64)))
    with pytest.raises(split.MismatchError, match="cuDNN is off by"):
        split.measure_sampling(run, "ddpmpp:1", num_steps=2)


def test_the_report_shows_what_was_measured_and_what_was_not(load, split, run, kept, monkeypatch):
    report = load("gpu_report")
    assert "| sampling | never measured | never measured (wanted: 25.0 ms) |" in report.split({})
    monkeypatch.setattr(split, "measure_sampling", functools.partial(split.measure_sampling, num_steps=2))
    split.measure(run, ["ddpmpp:1"])
    text = report.split(kept("split"))
    assert "1.00 s (**missed**: 25.0 ms)" in text
    assert "3×3 1 × 16×8×8 bfloat16 to 16" in text
    assert "1.00" in text


def test_a_dry_run_says_what_it_would_do(split):
    lines = list(split.describe([]))
    assert any("a forward of ddpmpp:16 by split sums" in line for line in lines)
    assert any("convolutions of adm" in line for line in lines)
