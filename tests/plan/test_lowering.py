"""A plan is its network: outputs for every architecture, dtype and algorithm, and the list of what it does."""

from __future__ import annotations

import re

import pytest
import torch
from tiny_networks import CONFIGURATIONS, evaluate, inputs, reference_of, tiny
from tolerance import assert_as_exact_as_eager, assert_plan_as_exact_as_eager, assert_same_bits
from torch.utils.flop_counter import FlopCounterMode

import edm_fast
from edm_fast.plan.ir import Columns, Conv, reads, writes
from edm_fast.plan.lowering import lower

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ALGORITHMS = ["auto", "winograd4", "winograd2x4", "winograd2", "direct", "tiles"]
REPRESENTATIVES = ["ddpmpp", "ncsnpp", "adm", "20x12"]


def outputs_of_plan(prepared, arguments):
    x, noise, labels, augment = arguments
    return prepared.network(
        x, noise, labels if labels.shape[1] else None, augment if augment.shape[1] else None
    ).contiguous()


def check(name, dtype, algorithm, precond="EDMPrecond"):
    net = tiny(name, precond)
    x, *rest = inputs(name)
    # Both see the same rounded images; noise levels and labels are float32 for every plan.
    arguments = (x.to(dtype).float(), *rest)
    actual = outputs_of_plan(edm_fast.prepare(net, dtype, algorithm), arguments)
    exact = evaluate(reference_of(net, torch.float64), arguments, torch.float64)
    eager = evaluate(reference_of(net, dtype), arguments, dtype)
    compare = assert_as_exact_as_eager if dtype == torch.float32 else assert_plan_as_exact_as_eager
    compare(actual, eager, exact, what=f"{name}, {algorithm}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_architecture(name, dtype):
    check(name, dtype, "auto")


@pytest.mark.parametrize("algorithm", ALGORITHMS[1:])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_every_algorithm(name, dtype, algorithm):
    check(name, dtype, algorithm)


@pytest.mark.parametrize("precond", ["VPPrecond", "VEPrecond", "iDDPMPrecond", "EDMPrecond"])
@pytest.mark.parametrize("name", ["ddpmpp", "adm under 64 channels"])
def test_denoisers(name, precond):
    """D itself, with a noise level for each sample; iDDPM's networks have twice the channels."""
    net = tiny(name, precond)
    x, _, labels, _ = inputs(name, samples=3)
    given = labels if labels.shape[1] else None
    sigma = torch.tensor([0.05, 1.0, 40.0])
    with torch.inference_mode():
        exact_net, plain = reference_of(net, torch.float64), reference_of(net)
        coefficients = plain.coefficients(sigma.reshape(-1, 1, 1, 1))
        c_skip, c_out, c_in, c_noise = (part.double() for part in coefficients)
        arguments = ((c_in.float() * x), c_noise.flatten(), labels, torch.zeros(3, 0))
        exact = c_skip * x + c_out * evaluate(exact_net, arguments, torch.float64)
        eager = plain(x, sigma, given)
    assert_as_exact_as_eager(edm_fast.prepare(net)(x, sigma, given), eager, exact, what=precond)


def test_no_labels_stand_for_zeros_and_one_row_for_all():
    prepared = edm_fast.prepare(tiny())
    x, _, labels, _ = inputs("ddpmpp", samples=3)
    assert_same_bits(prepared(x, 1.0), prepared(x, 1.0, torch.zeros(3, 10)))
    assert_same_bits(prepared(x, 1.0, labels[:1]), prepared(x, torch.ones(3), labels[:1].repeat(3, 1)))


def test_augment_labels_may_be_one_row_or_one_for_each():
    prepared = edm_fast.prepare(tiny())
    x, _, _, augment = inputs("ddpmpp", samples=3)
    every = prepared(x, 1.0, augment_labels=augment)
    assert_same_bits(prepared(x[1:2], 1.0, augment_labels=augment[1:2]), every[1:2])
    assert_same_bits(
        prepared(x, 1.0, augment_labels=augment[:1]), prepared(x, 1.0, augment_labels=augment[:1].repeat(3, 1))
    )


def test_a_network_without_augmentation_ignores_its_labels_as_the_reference_does():
    prepared = edm_fast.prepare(tiny("ncsnpp"))
    x = inputs("ncsnpp")[0]
    assert_same_bits(prepared(x, 1.0, augment_labels=torch.ones(2, 9)), prepared(x, 1.0))


@pytest.mark.parametrize("sigma", [1.0, torch.zeros(0)], ids=["one", "none"])
def test_no_samples(sigma):
    prepared = edm_fast.prepare(tiny("adm under 64 channels"))
    assert prepared(torch.zeros(0, 3, 8, 8), sigma).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_image_is_written_once_before_it_is_read(name):
    graph = lower(tiny(name).model, *inputs(name)[0].shape[2:])
    written = {graph.input}
    for operation in graph.operations:
        assert written.issuperset(reads(operation))
        assert written.isdisjoint(writes(operation))
        written.update(writes(operation))
    assert graph.output in written
    used = [column for operation in graph.operations for column in modulation_columns(operation)]
    assert sorted(used) == list(range(graph.columns))


def modulation_columns(operation):
    parts = [getattr(operation, name, None) for name in ("pre_bias", "scale", "shift")]
    spans = [part for part in parts if isinstance(part, Columns)]
    return [column for span in spans for column in range(span.start, span.start + span.width)]


def test_describe_lists_every_operation_and_counts_what_torch_counts():
    net = tiny("adm")
    prepared = edm_fast.prepare(net)
    graph = prepared.plan(8, 8).graph
    lines = prepared.describe().splitlines()
    assert len(lines) == len(graph.operations) + 2
    for line, operation in zip(lines, graph.operations, strict=False):
        for image in (*reads(operation), *writes(operation)):
            assert f"{image.channels}x{image.height}x{image.width}" in line
        assert isinstance(operation, Conv) == (re.search(r"conv \dx\d", line) is not None)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net(torch.zeros(1, 3, 8, 8), 1.0)
    [by_torch] = [count for op, count in counter.get_flop_counts()["Global"].items() if "convolution" in str(op)]
    listed = [float(re.search(r"([\d.]+) MFLOP", line)[1]) for line in lines if " conv " in line]
    assert sum(listed) * 1e6 == pytest.approx(by_torch, rel=0.01)
    weights = int(re.search(r"([\d,]+) weights", lines[-2])[1].replace(",", ""))
    counted = sum(
        parameter.numel()
        for name, parameter in net.model.named_parameters()
        if not name.startswith("map_") and ".affine." not in name
    )
    assert weights == counted
