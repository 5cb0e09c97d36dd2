"""A graph on a device: the reference network's function, a table of steps, and captured runs."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from conftest import cuda_usable
from tiny_networks import tiny
from tolerance import SAMPLER_FLOAT32, assert_as_exact_as_eager, assert_same_bits, relative_error

import edm_fast
from edm_fast.plan import Prepared, cache, prepare
from edm_fast.plan import prepared as prepared_module
from edm_fast.plan.costs import launches
from edm_fast.plan.device import DevicePlan
from edm_fast.plan.embedding import DeviceModulation
from edm_fast.plan.graphs import CapturedPlan
from edm_fast.plan.ir import AddBias, Conv, Graph, GroupNormSilu, Image, Residual
from edm_fast.plan.lowering import lower
from edm_fast.plan.passes import overwritten
from edm_fast.plan.steps import StepTable
from edm_fast.reference import preconditioning as reference

SONG = {
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 4,
    "model_type": "SongUNet",
    "augment_dim": 9,
    "model_channels": 16,
    "channel_mult": [2, 1],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "dropout": 0.0,
}
WIDE = [1, 3, 3, 1]
NETWORKS = {
    "positional": SONG,
    "fourier": {**SONG, "embedding_type": "fourier", "channel_mult_noise": 2},
    "filtered": {**SONG, "resample_filter": WIDE},
    "residual": {**SONG, "encoder_type": "residual", "channel_mult": [1, 2, 2], "resample_filter": WIDE},
    "residual by averages": {**SONG, "encoder_type": "residual", "channel_mult": [1, 2, 2]},
    "skip": {**SONG, "encoder_type": "skip", "decoder_type": "skip", "resample_filter": WIDE},
    "skip by averages": {**SONG, "encoder_type": "skip", "decoder_type": "skip"},
    "adm": {**SONG, "model_type": "DhariwalUNet", "model_channels": 32, "channel_mult": [1, 2]},
}


def network(name):
    """A reference network whose weights, biases and norms are all of a size that matters."""
    net = reference.EDMPrecond(**NETWORKS[name]).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(7)
    for parameter in net.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(max(parameter[0].numel(), 4)))
    return net


def inputs(dtype=torch.float32, samples=2):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn([samples, 3, 8, 8], generator=generator).to(dtype)
    labels, augment = (torch.randn([samples, width], generator=generator) for width in (4, 9))
    return x.contiguous(memory_format=torch.channels_last), torch.linspace(-1, 1, samples), labels, augment


def device_plan(net, dtype=torch.float32, backend=None):
    graph = lower(net.model, 8, 8, plain_skips=True)
    plan = DevicePlan(graph, dtype, "cpu", backend)
    return plan, DeviceModulation(net.model, graph.affines, plan.column_biases)


def assert_like_reference(name, dtype, backend):
    net = network(name)
    plan, modulation = device_plan(net, dtype, backend)
    x, *rest = inputs(dtype)
    actual = plan.run(x, modulation(*rest))
    eager = net.model(x, *rest)
    exact = copy.deepcopy(net.model).double()(x.double(), *(tensor.double() for tensor in rest))
    assert_as_exact_as_eager(actual, eager, exact, what=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_is_the_networks(name, backend, dtype):
    assert_like_reference(name, dtype, backend)


def test_the_function_is_the_networks_by_the_kernels_of_the_gpu(simt_module):
    assert_like_reference("adm", torch.float16, "simt")


def operations(name, kind):
    return [operation for operation in device_plan(network(name))[0].graph.operations if isinstance(operation, kind)]


@pytest.mark.parametrize("name", NETWORKS)
def test_convolutions_only_convolve(name):
    for conv in operations(name, Conv):
        assert conv.biases == ()
        assert conv.kernel == 1 or (conv.residual is None and conv.scale == 1)


@pytest.mark.parametrize("name", ["positional", "adm", "residual by averages"])
def test_only_the_output_gets_its_bias_in_a_pass_of_its_own(name):
    assert [operation.out.name for operation in operations(name, AddBias)] in (["8x8_aux_conv"], ["out_conv"])


def test_products_write_over_their_residuals():
    plan, _ = device_plan(network("positional"))
    products = [conv for conv in operations("positional", Conv) if conv.residual is not None]
    assert len(overwritten(plan.graph)) == len(products) > 0


def test_a_residual_that_is_read_again_is_kept():
    first, second, output = (Image(name, 4, 2, 2) for name in ("first", "second", "output"))
    product = Conv(None, (first,), output, 1, 0, residual=second)
    assert overwritten(Graph(first, output, [product])) == {product}
    again = Residual(output, second, Image("sum", 4, 2, 2), 1.0)
    assert overwritten(Graph(first, again.out, [product, again])) == set()


def test_launches_count_a_norm_that_fits_into_shared_memory_once():
    graph = device_plan(network("positional"))[0].graph
    norms = sum(isinstance(operation, GroupNormSilu) for operation in graph.operations)
    assert launches(graph) == len(graph.operations)
    assert launches(graph, shared_bytes=0) == len(graph.operations) + norms


def test_a_graph_lowered_for_the_cpu_is_refused():
    with pytest.raises(ValueError, match=r"^graph: .*plain_skips=True"):
        DevicePlan(lower(network("positional").model, 8, 8), torch.float32, "cpu")


def test_no_samples_give_no_samples():
    plan, modulation = device_plan(network("positional"))
    x, *rest = inputs(samples=0)
    assert plan.run(x, modulation(*rest)).shape == (0, 3, 8, 8)


def test_the_result_can_have_a_place():
    plan, modulation = device_plan(network("positional"))
    x, *rest = inputs()
    rows, out = modulation(*rest), torch.full([2, 3, 8, 8], torch.nan)
    assert plan.run(x, rows, out) is out
    assert_same_bits(out, plan.run(x, rows).contiguous())


def test_one_row_serves_all_samples():
    plan, modulation = device_plan(network("positional"))
    x, *rest = inputs()
    row = modulation(*rest)[1:]
    assert_same_bits(plan.run(x, row), plan.run(x, row.repeat(2, 1)))


def table(steps=3):
    return torch.arange(steps * 2 * 5.0).view(steps, 2, 5)


def test_a_step_table_gives_each_sample_its_row_of_the_step():
    steps = StepTable(table(), torch.tensor([1, 0, 1]))
    for step in (0, 2, 1):
        steps.seek(step)
        assert_same_bits(steps.read(), table()[step][[1, 0, 1]])


def test_a_step_table_advances():
    steps = StepTable(table()[:, :1])
    steps.seek(1)
    steps.advance()
    assert_same_bits(steps.read(), table()[2, :1])


@pytest.mark.parametrize("step", [-1, 3])
def test_a_step_outside_the_table_is_refused(step):
    with pytest.raises(ValueError, match=rf"^step: got {step}; the table has 3 steps"):
        StepTable(table()[:, :1]).seek(step)


def test_distinct_rows_need_to_know_their_samples():
    with pytest.raises(ValueError, match=r"^of_sample: "):
        StepTable(table())


def test_a_loaded_step_table_is_read_as_a_new_one():
    rows = torch.randn(5, 3, 4)
    of_sample = torch.tensor([2, 0])
    steps = StepTable.empty(16, 4, 2, torch.device("cpu"))
    for part in (rows, rows[2:, :2].contiguous()):
        chosen = of_sample % part.shape[1]
        steps.load(part, chosen)
        for step in range(len(part)):
            assert_same_bits(steps.read(), part[step, chosen])
            steps.advance()


@pytest.mark.parametrize(
    ("name", "rows", "of_sample"),
    [
        ("rows", torch.zeros(3, 3, 4), torch.zeros(2, dtype=torch.int64)),
        ("rows", torch.zeros(3, 1, 5), torch.zeros(2, dtype=torch.int64)),
        ("of_sample", torch.zeros(3, 2, 4), torch.zeros(3, dtype=torch.int64)),
        ("of_sample", torch.zeros(3, 2, 4), None),
    ],
    ids=["too many", "too wide", "other samples", "nobody's"],
)
def test_a_step_table_refuses_what_does_not_fit(name, rows, of_sample):
    steps = StepTable.empty(8, 4, 2, torch.device("cpu"))
    with pytest.raises(ValueError, match=f"^{name}: "):
        steps.load(rows, of_sample)


class FakeCapture:
    """Captures like CUDA: the function runs once, and a replay computes it again into the same memory."""

    def __init__(self):
        self.captures = 0

    def __call__(self, function):
        self.captures += 1
        result = function()
        return lambda: result.copy_(function()), result.fill_(torch.nan)


def captured_plan(capture, most=8):
    plan, modulation = device_plan(network("positional"))
    return CapturedPlan(plan, capture, most), modulation


def test_a_captured_run_gives_the_plans_bits():
    captured, modulation = captured_plan(FakeCapture())
    x, *rest = inputs()
    rows = modulation(*rest)
    assert_same_bits(captured.run(x, rows), captured.plan.run(x, rows))


def test_one_capture_serves_every_step_and_number_of_steps():
    capture = FakeCapture()
    captured, modulation = captured_plan(capture)
    x, *rest = inputs()
    for count in (1, 3):
        rows = torch.stack([modulation(rest[0] + step, *rest[1:]) for step in range(count)])
        steps = StepTable(rows, torch.tensor([0, 1]))
        for step in range(count):
            steps.seek(step)
            assert_same_bits(captured.run(x, steps), captured.plan.run(x, rows[step]))
    assert capture.captures == 1


def test_a_result_outlives_the_next_run():
    captured, modulation = captured_plan(FakeCapture())
    x, *rest = inputs()
    rows = modulation(*rest)
    first = captured.run(x, rows)
    captured.run(x + 1, rows)
    assert_same_bits(first, captured.plan.run(x, rows))


def test_the_least_recently_used_capture_is_dropped():
    capture = FakeCapture()
    captured, modulation = captured_plan(capture, most=2)
    row = modulation(*[tensor[:1] for tensor in inputs()[1:]])
    for samples, captures in ((1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4)):
        captured.run(inputs(samples=samples)[0], row)
        assert capture.captures == captures


def failing(error):
    def capture(function):
        raise error

    return capture


def test_where_a_capture_fails_the_plan_runs_without(caplog):
    captured, modulation = captured_plan(failing(RuntimeError("no such graph")))
    x, *rest = inputs()
    rows = modulation(*rest)
    for samples in (2, 1):
        assert_same_bits(captured.run(x[:samples], rows[:samples]), captured.plan.run(x[:samples], rows[:samples]))
    [record] = caplog.records
    assert "no such graph" in record.message


def test_too_little_memory_for_a_capture_is_the_callers_to_know():
    captured, modulation = captured_plan(failing(torch.OutOfMemoryError("full")))
    x, *rest = inputs()
    with pytest.raises(torch.OutOfMemoryError):
        captured.run(x, modulation(*rest))


def test_earlier_captures_make_room():
    """Memory that runs out at the third capture, and suffices again once the others are gone."""
    fake = FakeCapture()

    def capture(function):
        if fake.captures == 2 and captured._captured:
            raise torch.OutOfMemoryError("full")
        return fake(function)

    captured, modulation = captured_plan(capture)
    row = modulation(*[tensor[:1] for tensor in inputs()[1:]])
    for samples in (1, 2, 3):
        x = inputs(samples=samples)[0]
        assert_same_bits(captured.run(x, row), captured.plan.run(x, row))
    assert list(captured._captured) == [(3, 1)]


def test_another_default_dtype_changes_nothing(on_device):
    options = {"num_steps": 3, "class_labels": [1, 2]}
    expected = edm_fast.sample(prepare(tiny()), [1, 2], **options)
    torch.set_default_dtype(torch.bfloat16)
    try:
        net = tiny().float()
    finally:
        torch.set_default_dtype(torch.float32)
    net.load_state_dict(tiny().state_dict())
    torch.set_default_dtype(torch.bfloat16)
    try:
        actual = edm_fast.sample(prepare(net), [1, 2], **options)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_bits(actual, expected)


def test_images_of_another_shape_are_refused():
    captured, modulation = captured_plan(FakeCapture())
    x, *rest = inputs()
    with pytest.raises(ValueError, match=r"^x: shape is \(2, 1, 8, 8\)"):
        captured.run(x[:, :1], modulation(*rest))


def test_a_captured_run_works_in_and_out_of_inference_mode():
    captured, modulation = captured_plan(FakeCapture())
    x, *rest = inputs()
    with torch.inference_mode():
        expected = captured.run(x, modulation(*rest)).clone()
    assert_same_bits(captured.run(x, modulation(*rest)), expected.clone())


@pytest.fixture
def on_device(monkeypatch):
    """Let networks on the CPU be prepared as on a device."""
    monkeypatch.setattr(Prepared, "_make_cpu_plan", Prepared._make_device_plan)
    monkeypatch.setattr(prepared_module, "CapturedPlan", functools.partial(CapturedPlan, capture=FakeCapture()))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_prepared_network_denoises_as_the_network(name, on_device):
    net = network(name)
    prepared = prepare(net)
    assert isinstance(prepared.plan(8, 8), CapturedPlan)
    x, _, labels, _ = inputs()
    sigma = torch.tensor([0.3, 5.0])
    exact = copy.deepcopy(net)
    exact.model.double()
    c_skip, c_out, c_in, c_noise = net.coefficients(sigma.reshape(-1, 1, 1, 1))
    truth = exact.model((c_in * x).double(), c_noise.flatten().double(), labels.double())
    truth = c_skip.double() * x.double() + c_out.double() * truth
    assert_as_exact_as_eager(prepared(x, sigma, labels), net(x, sigma, labels), truth, what=name)


def test_a_prepared_network_notices_new_weights(on_device):
    net = network("positional")
    prepared = prepare(net)
    x, _, labels, _ = inputs()
    before = prepared(x, 1.0, labels)
    for parameter in net.parameters():
        parameter.mul_(0.5)
    assert relative_error(prepared(x, 1.0, labels), before) > 0.01
    assert relative_error(prepared(x, 1.0, labels), net(x, 1.0, labels)) < SAMPLER_FLOAT32


def test_a_prepared_network_describes_itself(on_device):
    text = prepare(network("positional")).describe()
    assert "group_norm_silu" in text
    assert "add_bias" in text


@pytest.mark.parametrize("labels", [None, [1, 3, 1]], ids=["unconditioned", "classes"])
def test_samples_are_the_networks(on_device, labels):
    net = network("positional")
    options = {"class_labels": labels, "num_steps": 4}
    images, expected = (edm_fast.sample(net, range(3), prepare=prepare, **options) for prepare in (True, False))
    assert relative_error(images, expected) < SAMPLER_FLOAT32


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match=r"^net: is on meta"):
        prepare(network("positional").to("meta"))


def test_a_network_that_runs_in_half_is_prepared_in_half(monkeypatch):
    made = []
    monkeypatch.setattr(cache, "Prepared", lambda net, dtype, algorithm: made.append(dtype) or FakePrepared(net))
    net = network("positional")
    for use_fp16, force_fp32 in ((False, False), (True, True), (True, False)):
        net.use_fp16 = use_fp16
        cache.prepared_for(net, torch.device("cuda", 0), force_fp32)
    assert made == [torch.float32, torch.float16]


class FakePrepared:
    def __init__(self, net):
        self.net = net


on_cuda = pytest.mark.skipif(not cuda_usable(), reason="no CUDA device, or no CUDA kernels in this build")


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_on_cuda_a_captured_run_gives_the_uncaptured_bits(name, dtype, caplog):
    prepared = prepare(network(name).cuda(), dtype)
    captured = prepared.plan(8, 8)
    for samples in (1, 2, 5, 2, 1):
        x, noise, labels, augment = (tensor.cuda() for tensor in inputs(dtype, samples))
        rows = prepared.modulation(noise, labels, augment)
        for _ in range(2):
            assert_same_bits(captured.run(x, rows), captured.plan.run(x, rows))
    assert not caplog.records


@on_cuda
@pytest.mark.parametrize("name", NETWORKS)
def test_on_cuda_the_function_is_the_networks(name):
    net = network(name)
    x, *rest = inputs(torch.float16)
    exact = copy.deepcopy(net.model).double()(x.double(), *(tensor.double() for tensor in rest))
    net.cuda()
    prepared = prepare(net, torch.float16)
    cuda = [tensor.cuda() for tensor in rest]
    actual = prepared.run(x.cuda(), prepared.modulation(*cuda))
    assert_as_exact_as_eager(actual, net.model(x.cuda(), *cuda), exact, what=name)


@on_cuda
def test_on_cuda_samples_are_the_networks():
    net = network("positional").cuda()
    options = {"class_labels": [1, 3, 1], "num_steps": 4}
    images, expected = (edm_fast.sample(net, range(3), prepare=prepare, **options) for prepare in (True, False))
    assert relative_error(images, expected) < SAMPLER_FLOAT32


@on_cuda
def test_on_cuda_the_library_chooses_the_algorithm():
    with pytest.raises(ValueError, match=r"^conv_algorithm: got 'direct'; on CUDA it is one of auto, split"):
        prepare(network("positional").cuda(), conv_algorithm="direct")
