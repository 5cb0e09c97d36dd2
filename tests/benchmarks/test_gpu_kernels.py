"""What is measured of single ops on a GPU, and their bits: no match, no time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import edm_fast

CPU = torch.device("cpu")


def test_ceilings_are_rates_of_bytes_both_ways_and_of_operations(load, run):
    module = load("gpu_ceilings")
    assert module.copy_rate(run, 4000)["bytes_per_s"] == 8000
    assert module.product_rate(run, 32)["flops_per_s"] == 2 * 32**3


def test_ceilings_that_are_kept_are_not_measured_again(load, run, monkeypatch):
    module = load("gpu_ceilings")
    run.keep("ceilings", "copy", {"bytes_per_s": 4e12})
    run.keep("ceilings", "matmul", {"flops_per_s": 8e14})
    monkeypatch.setattr(module, "measure", None)
    assert module.ceilings(run) == (4e12, 8e14)


def test_a_wrong_product_has_no_rate(load, run, monkeypatch):
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: product(a, b, out=out).mul_(1.1))
    with pytest.raises(RuntimeError, match="matrix product is off"):
        load("gpu_ceilings").product_rate(run, 32)


def inputs_of(load, case):
    return case.make(case.samples, load("gpu_cases").Source(CPU, torch.Generator().manual_seed(1)))


def test_bytes_are_those_of_what_is_read_and_written(load):
    for case in load("gpu_cases").cases(2):
        if case.op != "solver_step":
            inputs = inputs_of(load, case)
            outputs = case.call(inputs, None)
            assert case.bytes == sum(tensor.nbytes for tensor in (*inputs.images.values(), *outputs)), case.name


def test_a_step_of_heuns_method_reads_and_writes_registers_six_times(load):
    elements = 3 * 8 * 8
    for case in load("gpu_cases").cases(2):
        if case.op == "solver_step":
            # r0 → r0, r1 and r0, r1 → r0; twice F and twice the network's input.
            assert case.bytes_per_sample == elements * (6 * 8 + 4 * 2)


def test_every_case_matches_its_reference(load):
    for case in load("gpu_cases").cases(4):
        assert load("gpu_ops").checked(case, inputs_of(load, case)).good, case.name


def wrong(case: Any, spoil: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The case with its own results spoilt, but not the reference's."""

    def call(inputs: Any, backend: str | None) -> tuple[torch.Tensor, ...]:
        outputs = case.call(inputs, backend)
        return outputs if backend == "reference" else tuple(spoil(output) for output in outputs)

    return type(case)(**{**vars(case), "call": call})


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda output: output * 1.5, "off by|allowed"),
        (lambda output: output + output.shape[0], "differ if the batch is split"),
        (lambda output: output * torch.nan, "off by inf|allowed"),
    ],
    ids=["wrong", "depends on the batch", "NaN"],
)
def test_a_case_that_does_not_match_gets_no_time(load, run, monkeypatch, spoil, reason, kept):
    ops = load("gpu_ops")
    [good, *_] = load("gpu_cases").cases(4)
    monkeypatch.setattr(ops, "cases", lambda few=None: [wrong(good, spoil)])
    assert not ops.measure(run, few=4, copied_bytes=4000)
    entry = kept("ops")[good.name]
    assert entry["match"] is False
    assert "ours_s" not in entry
    assert any(part in entry["reason"] for part in reason.split("|"))


def test_the_share_is_the_time_of_a_copy_of_as_many_bytes_over_ours(load, run, kept):
    ops = load("gpu_ops")
    assert ops.measure(run, ["resample"], few=4, copied_bytes=4000)
    measured = kept("ops")
    assert len(measured) == 4
    for entry in measured.values():
        # Ten copies of 4000 bytes and ten calls take a second each.
        assert entry["ours_s"] == pytest.approx(0.1)
        assert entry["ratio"] == pytest.approx(entry["bytes"] / 8000)


def test_full_sizes_are_beyond_the_l2_cache(load):
    for case in load("gpu_cases").cases():
        assert case.bytes > 4 * 60e6, case.name


def test_bits_are_compared_and_not_values(load):
    differing = load("gpu_bits").differing
    zeros = torch.zeros(4)
    assert differing([zeros, zeros * torch.nan], [zeros, zeros * torch.nan]) == 0
    assert differing([zeros], [-zeros]) == 4
    assert differing([zeros], [zeros.double()]) > 0
    assert differing([zeros], [zeros[:3]]) > 0


@pytest.fixture
def bits(load, monkeypatch):
    """The stage with little to do."""
    module = load("gpu_bits")
    for name, value in {"SAMPLES": 4, "SPLITS": ((1, 3),), "NOISE_SHAPES": ((3, 5, 4),), "CHECKED": ("adm",)}.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_on_the_cpu_every_promise_about_bits_is_kept(bits, run, kept):
    assert bits.check(run)
    found = kept("bits")
    assert set(found) == {"noise", "repeats", "splits", "network adm"}
    for name in ("noise", "repeats", "splits"):
        assert found[name]["elements"] > 0
        assert found[name]["good"]
    assert found["network adm"]["splits_differing"] == found["network adm"]["repeats_differing"] == 0


def test_other_noise_on_the_device_is_bad(bits, run, monkeypatch):
    randn = edm_fast.randn
    monkeypatch.setattr(
        edm_fast, "randn", lambda *args, device=None, **options: randn(*args, **options) + (device is not None)
    )
    assert bits.noise(run)["differing"] == bits.noise(run)["elements"]


@pytest.mark.parametrize("what", ["repeats", "splits"])
def test_kernels_with_other_bits_are_named(bits, load, run, monkeypatch, what, kept):
    calls = iter(range(100))
    [good, *_] = load("gpu_cases").cases(4)
    spoil = {"repeats": lambda output: output + next(calls), "splits": lambda output: output + output.shape[0]}[what]
    monkeypatch.setattr(bits, "cases", lambda few=None: [wrong(good, spoil)])
    assert not bits.check(run)
    assert kept("bits")[what]["cases"] == [good.name]


def test_a_network_that_depends_on_its_batch_is_reported_and_not_judged(bits, run, monkeypatch, kept):
    plain = edm_fast.plan.Prepared.run
    monkeypatch.setattr(edm_fast.plan.Prepared, "run", lambda self, x, rows: plain(self, x, rows) + x.shape[0])
    assert bits.check(run)
    entry = kept("bits")["network adm"]
    assert entry["splits_differing"] == entry["elements"]
    assert entry["error"] > 0
