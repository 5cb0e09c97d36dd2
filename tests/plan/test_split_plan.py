"""Convolutions of our own on a device: the reference network's function, moments from them, bits of every batch."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from conftest import cuda_usable
from plan.test_device_plan import NETWORKS, FakeCapture, inputs, network
from tolerance import HALF_SAMPLES, assert_as_exact_as_eager, assert_same_bits, relative_error

import edm_fast
from edm_fast.ops import group_norm_silu
from edm_fast.plan import Prepared, prepare, split
from edm_fast.plan import device as device_module
from edm_fast.plan import prepared as prepared_module
from edm_fast.plan.embedding import DeviceModulation
from edm_fast.plan.graphs import CapturedPlan
from edm_fast.plan.ir import GroupNormSilu
from edm_fast.plan.lowering import lower
from edm_fast.plan.split import SplitPlan


def split_plan(net, dtype=torch.float16, backend="reference"):
    graph = lower(net.model, 8, 8, plain_skips=True)
    plan = SplitPlan(graph, dtype, "cpu", backend)
    return plan, DeviceModulation(net.model, graph.affines, plan.column_biases)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["reference", "simt"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_is_the_networks(request, name, backend, dtype):
    if backend == "simt":
        request.getfixturevalue("simt_module")
    net = network(name)
    plan, modulation = split_plan(net, dtype, backend)
    x, *rest = inputs(dtype)
    eager = net.model(x, *rest)
    exact = copy.deepcopy(net.model).double()(x.double(), *(tensor.double() for tensor in rest))
    assert_as_exact_as_eager(plan.run(x, modulation(*rest)), eager, exact, what=name)


@pytest.mark.parametrize("name", ["positional", "adm", "residual"])
def test_norms_take_the_moments_that_convolutions_leave(monkeypatch, simt_module, name):
    """All but those of images that something else wrote, and they change nothing but the way."""
    net = network(name)
    x, *rest = inputs(torch.float16)
    given = []

    def observed(*args, moments=None, **options):
        given.append(bool(moments))
        return group_norm_silu(*args, moments=moments, **options)

    monkeypatch.setattr(device_module, "group_norm_silu", observed)
    plan, modulation = split_plan(net, backend="simt")
    with_moments = plan.run(x, modulation(*rest))
    norms = sum(isinstance(operation, GroupNormSilu) for operation in plan.graph.operations)
    # Where sums of two images go on, into the next block and, past it, into the decoder.
    others = {"positional": 0, "adm": 0, "residual": 4}[name]
    assert (len(given), given.count(False)) == (norms, others)
    monkeypatch.setattr(split, "_moments", lambda graph: {})
    without, modulation = split_plan(net, backend="simt")
    eager, exact = without.run(x, modulation(*rest)), net.model.double()(x.double(), *(t.double() for t in rest))
    assert_as_exact_as_eager(with_moments, eager, exact)


def test_a_sample_has_the_same_bits_in_every_batch(simt_module):
    """Convolutions, norms and the rest; attention by the library is told to be the same too."""
    net = network("filtered")
    plan, modulation = split_plan(net, backend="simt")
    x, *rest = inputs(torch.float16, samples=3)
    rows = modulation(*rest)
    together = plan.run(x, rows)
    for i in range(3):
        assert_same_bits(plan.run(x[i : i + 1], rows[i : i + 1]), together[i : i + 1])


def test_it_can_be_captured(simt_module):
    """What one run leaves behind, the next can begin with."""
    plan, modulation = split_plan(network("positional"), backend="simt")
    captured = CapturedPlan(plan, FakeCapture(), 8)
    x, *rest = inputs(torch.float16)
    rows = modulation(*rest)
    wanted = plan.run(x, rows)
    for _ in range(2):
        assert_same_bits(captured.run(x, rows), wanted)


def test_graphs_and_dtypes_that_it_does_not_run_are_refused():
    net = network("positional")
    with pytest.raises(ValueError, match=r"^graph: .*plain_skips=True"):
        SplitPlan(lower(net.model, 8, 8), torch.float16, "cpu")
    with pytest.raises(ValueError, match=r"^dtype: got torch.float32; .* float16 and bfloat16"):
        SplitPlan(lower(net.model, 8, 8, plain_skips=True), torch.float32, "cpu")


@pytest.fixture
def prepared_on_device(monkeypatch, simt_module):
    """prepare(…, conv_algorithm="split") of networks on the CPU, as on a device; the emulator runs what is captured."""
    monkeypatch.setattr(Prepared, "_make_cpu_plan", Prepared._make_device_plan)
    monkeypatch.setattr(prepared_module, "CapturedPlan", functools.partial(CapturedPlan, capture=FakeCapture()))
    monkeypatch.setattr(prepared_module, "SplitPlan", functools.partial(SplitPlan, backend="simt"))
    monkeypatch.setitem(prepared_module.CHOICES, "cpu", ("auto", "split"))
    return functools.partial(prepare, dtype=torch.float16, conv_algorithm="split")


@pytest.mark.parametrize("name", ["positional", "adm"])
def test_a_prepared_network_denoises_as_the_network(prepared_on_device, name):
    net = network(name)
    prepared = prepared_on_device(net)
    assert isinstance(prepared.plan(8, 8).plan, SplitPlan)
    x, _, labels, _ = inputs()
    sigma = torch.tensor([0.3, 5.0])
    exact = copy.deepcopy(net)
    exact.model.double()
    c_skip, c_out, c_in, c_noise = (c.double() for c in net.coefficients(sigma.reshape(-1, 1, 1, 1)))
    truth = c_skip * x.double() + c_out * exact.model((c_in * x), c_noise.flatten(), labels.double())
    half = copy.deepcopy(net)
    half.model.half()
    output = half.model((c_in * x).half(), c_noise.flatten().half(), labels.half())
    eager = (c_skip * x + c_out * output).float()
    assert_as_exact_as_eager(prepared(x, sigma, labels), eager, truth, what=name)


def test_it_samples_and_notices_new_weights(prepared_on_device):
    """The same images in any batch, but for the modulation and attention of a library."""
    net = network("positional")
    prepared = prepared_on_device(net)
    options = {"class_labels": [1, 3, 1], "num_steps": 4}
    images = edm_fast.sample(prepared, range(3), **options)
    expected = edm_fast.sample(net, range(3), prepare=False, **options)
    assert relative_error(images, expected) < HALF_SAMPLES
    for parameter in net.parameters():
        parameter.mul_(0.5)
    others = edm_fast.sample(prepared, range(3), **options)
    assert relative_error(others, images) > HALF_SAMPLES
    assert relative_error(others, edm_fast.sample(net, range(3), prepare=False, **options)) < HALF_SAMPLES
    assert "conv 3x3" in prepared.describe()


def test_prepare_refuses_it_in_float32(prepared_on_device):
    with pytest.raises(ValueError, match=r"^conv_algorithm: got 'split' with torch.float32; .* float16 and bfloat16"):
        prepared_on_device(network("positional"), dtype=torch.float32)


def test_prepare_refuses_it_where_it_cannot_run():
    with pytest.raises(ValueError, match=r"^conv_algorithm: got 'split'; on the CPU it is one of auto, direct"):
        prepare(network("positional"), torch.bfloat16, conv_algorithm="split")


@pytest.mark.skipif(not cuda_usable(), reason="no CUDA device, or no CUDA kernels in this build")
def test_prepared_on_cuda():
    net = network("positional").cuda()
    with pytest.raises(ValueError, match=r"^conv_algorithm: got 'split' with torch.float32; .* bfloat16"):
        prepare(net, conv_algorithm="split")
    prepared = prepare(net, torch.bfloat16, conv_algorithm="split")
    x, *rest = (tensor.cuda() for tensor in inputs(torch.bfloat16))
    exact = copy.deepcopy(net.model).double()(x.double(), *(tensor.double() for tensor in rest))
    eager = net.model(x, *rest)
    assert_as_exact_as_eager(prepared.network(x, *rest), eager, exact)
    options = {"class_labels": [1, 2, 3], "num_steps": 4}
    images = edm_fast.sample(prepared, [5, 6, 7], **options)
    assert_same_bits(edm_fast.sample(prepared, [5, 6, 7], **options), images)
