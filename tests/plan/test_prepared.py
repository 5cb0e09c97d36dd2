"""A prepared network: the same bits for every batch and number of threads, its net's weights, and clear errors."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from tiny_networks import evaluate, inputs, reference_of, tiny
from tolerance import assert_as_exact_as_eager, assert_same_bits

import edm_fast
from edm_fast.ops.backends import extension
from edm_fast.plan import cpu
from edm_fast.plan.cache import prepared_for
from edm_fast.plan.versions import Versions, _CapturedSums
from edm_fast.plan.weights import PackedLinear
from edm_fast.reference.preconditioning import EDMPrecond

CPU = torch.device("cpu")


@pytest.fixture
def threads():
    """Sets the number of threads; it is put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("small", [True, False], ids=["samples", "team"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm", "20x12", "wide enough for winograd"])
def test_batches_and_threads_give_the_same_bits(name, dtype, small, monkeypatch, threads):
    monkeypatch.setattr(cpu, "_SMALL_NETWORK", float("inf") if small else 0)
    prepared = edm_fast.prepare(tiny(name), dtype)
    x, _, labels, _ = inputs(name, samples=5)
    sigma = torch.tensor([0.01, 0.3, 1.0, 7.0, 80.0])
    expected = torch.cat([prepared(x[i : i + 1], sigma[i], labels[i : i + 1]) for i in range(5)])
    order = torch.tensor([3, 0, 4, 2, 1])
    # More threads than cores wait for each other at every barrier, so one network has to do.
    for count in (1, 2, 3) if name == "ddpmpp" and dtype == torch.float32 else (1, 2):
        threads(count)
        assert_same_bits(prepared(x, sigma, labels), expected)
        assert_same_bits(prepared(x[order], sigma[order], labels[order]), expected[order])
        parts = [prepared(x[part], sigma[part], labels[part]) for part in (slice(0, 2), slice(2, 5))]
        assert_same_bits(torch.cat(parts), expected)


def test_small_and_large_networks_give_the_same_bits(monkeypatch, threads):
    threads(2)
    x = inputs("adm", samples=3)[0]
    results = []
    for limit in (0, float("inf")):
        monkeypatch.setattr(cpu, "_SMALL_NETWORK", limit)
        results.append(edm_fast.prepare(tiny("adm"))(x, 1.0))
    assert_same_bits(*results)


def test_layouts_and_dtypes_of_images(monkeypatch):
    prepared = edm_fast.prepare(tiny())
    x = inputs("ddpmpp", samples=3)[0]
    expected = prepared(x, 1.0)
    wide = torch.empty(3, 3, 8, 16)
    wide[..., ::2] = x
    shapes = [x.contiguous(memory_format=torch.channels_last), wide[..., ::2], x.double(), x.clone().requires_grad_()]
    for other in shapes:
        assert_same_bits(prepared(other, 1.0), expected)
    assert_same_bits(prepared(x[:1].expand(3, -1, -1, -1), 1.0), prepared(x[:1], 1.0).repeat(3, 1, 1, 1))


def write_in_place(net):
    with torch.no_grad():
        net.model.dec["8x8_aux_conv"].weight.mul_(1.5)


def write_a_bias(net):
    with torch.no_grad():
        net.model.enc["8x8_conv"].bias.add_(0.5)


def write_an_embedding(net):
    with torch.no_grad():
        net.model.map_layer0.weight.mul_(1.5)


def load(net):
    net.load_state_dict(tiny(seed=8).state_dict())


def assign(net):
    net.load_state_dict(tiny(seed=8).state_dict(), assign=True)


def swap_data(net):
    parameter = net.model.enc["8x8_conv"].weight
    parameter.data = parameter.data * 1.5


def write_data(net):
    net.model.enc["8x8_conv"].weight.data.mul_(1.5)


def write_by_numpy(net):
    array = net.model.enc["8x8_conv"].weight.detach().numpy()
    np.multiply(array, 1.5, out=array)


def replace_a_parameter(net):
    conv = net.model.enc["8x8_conv"]
    conv.weight = torch.nn.Parameter(conv.weight.detach() * 1.5)


def take_a_step(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    net(torch.ones(1, 3, 8, 8), 1.0).square().mean().backward()
    optimizer.step()
    net.zero_grad()


VISIBLE = [write_in_place, write_a_bias, write_an_embedding, load, assign, swap_data, replace_a_parameter, take_a_step]
HIDDEN = [write_data, write_by_numpy]


def name_of(function):
    return function.__name__


@pytest.mark.parametrize("change", VISIBLE, ids=name_of)
def test_changed_weights_are_noticed(change):
    net = tiny()
    prepared = edm_fast.prepare(net)
    x = inputs("ddpmpp")[0]
    before = prepared(x, 1.0)
    change(net)
    after = prepared(x, 1.0)
    assert not torch.equal(before, after)
    assert_same_bits(after, edm_fast.prepare(net)(x, 1.0))


@pytest.mark.parametrize("change", HIDDEN, ids=name_of)
def test_refresh_sees_writes_that_autograd_does_not_count(change):
    net = tiny()
    prepared = edm_fast.prepare(net)
    x = inputs("ddpmpp")[0]
    change(net)
    prepared.refresh()
    assert_same_bits(prepared(x, 1.0), edm_fast.prepare(net)(x, 1.0))


@pytest.mark.parametrize("change", VISIBLE + HIDDEN, ids=name_of)
def test_sample_notices_changed_weights(change):
    net = tiny()
    before = edm_fast.sample(net, [0, 1], num_steps=2)
    change(net)
    after = edm_fast.sample(net, [0, 1], num_steps=2)
    assert not torch.equal(before, after)
    assert_same_bits(after, edm_fast.sample(edm_fast.prepare(net), [0, 1], num_steps=2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool], ids=str)
def test_writes_are_seen_in_tensors_of_any_dtype_and_offset(dtype):
    module = torch.nn.Module()
    module.register_buffer("buffer", torch.zeros(7, dtype=dtype)[1:])
    versions = Versions(module)
    assert not versions.changed(contents=True)
    module.buffer.data[3] = 1
    assert versions.changed(contents=True)
    assert not versions.changed(contents=True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_kind_of_change_is_seen(device):
    """Again and again: on CUDA the second look at the same tensors captures it."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    module = torch.nn.Linear(3, 5, device=device)
    module.register_buffer("steps", torch.zeros([], dtype=torch.int64, device=device))
    versions = Versions(module)

    def replace():
        module.weight = torch.nn.Parameter(module.weight.detach() * 2)

    changes = [
        lambda: module.weight.data.add_(1),
        lambda: module.bias.data.copy_(module.bias.data * 2),
        replace,
        lambda: module.steps.data.add_(1),
        lambda: torch.nn.init.constant_(module.weight, 0.5),
    ]
    for change in changes:
        for _ in range(3):
            assert not versions.changed(contents=True)
        change()
        assert versions.changed(contents=True)


def test_captured_sums_look_at_the_values_of_the_replay():
    """With a capture of the host's, which runs again what it was given."""
    tensors = [torch.zeros(4), torch.zeros(3, dtype=torch.int64)]

    def capture(function):
        result = function()
        return (lambda: result.copy_(function())), result

    sums = _CapturedSums(tensors, capture)
    assert sums() == [0, 0]
    tensors[1][2] = 7
    assert sums() == [0, 7]


def test_networks_of_inference_mode():
    with torch.inference_mode():
        net = tiny()
        x = inputs("ddpmpp")[0]
        before = edm_fast.sample(net, [0], num_steps=1)
        net.model.enc["8x8_conv"].weight.mul_(1.5)
        assert not torch.equal(edm_fast.sample(net, [0], num_steps=1), before)
        assert_same_bits(edm_fast.prepare(net)(x, 1.0), edm_fast.prepare(copy.deepcopy(net))(x, 1.0))


def test_other_default_dtype_and_device():
    net = tiny("adm")
    x = inputs("adm")[0]
    expected = edm_fast.prepare(net)(x, 1.0)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            prepared = edm_fast.prepare(net)
            sigma = torch.ones(1, dtype=torch.float32, device="cpu")
            assert_same_bits(prepared(x, sigma), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_dropped_network_takes_its_plan_along():
    net = tiny()
    edm_fast.sample(net, [0], num_steps=1)
    seen = weakref.ref(net), weakref.ref(prepared_for(net, CPU))
    del net
    gc.collect()
    assert [reference() for reference in seen] == [None, None]


def test_copies_and_files_hold_no_plan(tmp_path):
    net = tiny()
    pickled = len(pickle.dumps(net))
    kept = prepared_for(net, CPU)
    assert prepared_for(net, CPU) is kept
    torch.save(net, tmp_path / "net.pt")
    copies = [
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        torch.load(tmp_path / "net.pt", weights_only=False),
        copy.copy(net),
    ]
    assert len(pickle.dumps(net)) < pickled + 1000
    for other in copies:
        found = prepared_for(other, CPU)
        assert found.net is other
        assert found is not kept
    assert list(net.state_dict()) == list(copies[0].state_dict())


def train(net):
    net.train()


def train_a_part(net):
    net.model.enc["8x8_block0"].train()


def hook(net):
    net.model.enc["8x8_block0"].conv0.register_forward_hook(lambda *_: None)


def hook_before(net):
    net.register_forward_pre_hook(lambda *_: None)


def replace_a_layer(net):
    net.model.dec["8x8_aux_conv"] = torch.nn.Conv2d(16, 3, 3, padding=1)


def replace_forward(net):
    part = net.model.enc["8x8_block0"].conv0
    part.forward = lambda x: type(part).forward(part, x) * 2


def replace_the_output(net):
    net.network_output = lambda *arguments, **options: torch.zeros(1)


def compile_a_part(net):
    net.model.enc["8x8_block0"].compile()


def parametrize(net):
    torch.nn.utils.parametrizations.weight_norm(net.model.map_layer0)


def to_double(net):
    net.double()


def to_half(net):
    net.half()


def ask_for_a_dtype(net):
    net.compute_dtype = torch.bfloat16


def subclass_a_block(net):
    block = net.model.enc["8x8_block0"]
    block.__class__ = type("Block", (type(block),), {"__module__": "elsewhere"})


TOUCHED = [train, train_a_part, hook, hook_before, replace_a_layer, replace_forward, replace_the_output]
TOUCHED += [compile_a_part, parametrize, to_double, to_half, ask_for_a_dtype, subclass_a_block]


@pytest.mark.parametrize("touch", TOUCHED, ids=name_of)
def test_a_network_that_is_not_its_plan_is_not_prepared(touch):
    net = tiny()
    assert prepared_for(net, CPU) is not None
    touch(net)
    assert prepared_for(net, CPU) is None


def test_hooks_on_all_modules_are_heeded():
    net = tiny()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert prepared_for(net, CPU) is None
    finally:
        handle.remove()
    assert prepared_for(net, CPU) is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_parameters_of_another_dtype_can_be_prepared(dtype):
    net = tiny()
    x = inputs("ddpmpp")[0]
    rounded = copy.deepcopy(net).to(dtype).float()
    assert_same_bits(edm_fast.prepare(net.to(dtype))(x, 1.0), edm_fast.prepare(rounded)(x, 1.0))


def test_a_plan_is_made_again_for_another_instruction_set(isa):
    net = tiny()
    arguments = inputs("ddpmpp")
    prepared = edm_fast.prepare(net)
    exact = evaluate(reference_of(net, torch.float64), arguments, torch.float64)
    eager = evaluate(reference_of(net), arguments, torch.float32)
    prepared.plan(16, 16)
    for name in (*isa.available_isas(), *isa.available_isas()):
        isa.use_isa(name)
        assert prepared.plan(8, 8).isa == extension().cpu.isa() == name
        assert_as_exact_as_eager(prepared.network(*arguments).contiguous(), eager, exact, what=name)


def test_a_plan_of_another_instruction_set_is_refused(isa):
    prepared = edm_fast.prepare(tiny())
    plan = prepared.plan(8, 8)
    other = next(name for name in ("baseline", "avx2") if name != plan.isa)
    isa.use_isa(other)
    x, columns = torch.zeros(1, plan.graph.input.channels, 8, 8), torch.zeros(1, plan.graph.columns)
    with pytest.raises(RuntimeError, match=f"^this plan is packed for {plan.isa}, and {other} is in use now"):
        plan.run(x, columns)


class Overridden(EDMPrecond):
    def forward(self, *arguments, **options):
        return super().forward(*arguments, **options) * 2


@pytest.mark.parametrize(
    ("make", "error", "name"),
    [
        (lambda net: edm_fast.prepare(net, torch.float64), TypeError, "dtype"),
        (lambda net: edm_fast.prepare(net, conv_algorithm="fft"), ValueError, "conv_algorithm"),
        (lambda net: edm_fast.prepare(net.model), TypeError, "net"),
        (lambda net: edm_fast.prepare(torch.nn.Linear(1, 1)), TypeError, "net"),
        (lambda net: edm_fast.prepare(Overridden(8, 3, model_channels=32, channel_mult=[1])), TypeError, "net"),
        (lambda net: edm_fast.prepare(net.to("meta")), ValueError, "net"),
    ],
)
def test_what_cannot_be_prepared_is_named(make, error, name):
    with pytest.raises(error, match=f"^{name}:"):
        make(tiny())


X, LABELS = torch.zeros(2, 3, 8, 8), torch.zeros(2, 10)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda p: p(torch.zeros(3, 8, 8), 1.0), "x must"),
        (lambda p: p(torch.zeros(2, 4, 8, 8), 1.0), "x must"),
        (lambda p: p(torch.zeros(2, 3, 9, 8), 1.0), "x:"),
        (lambda p: p(torch.zeros(2, 3, 0, 8), 1.0), "x:"),
        (lambda p: p(X, torch.ones(3)), "sigma must"),
        (lambda p: p(X, 1.0, torch.zeros(2, 9)), "class_labels must"),
        (lambda p: p(X, 1.0, torch.zeros(3, 10)), "class_labels must"),
        (lambda p: p(X, 1.0, torch.zeros(10)), "class_labels must"),
        (lambda p: p(X, 1.0, augment_labels=torch.zeros(2, 8)), "augment_labels:"),
        (lambda p: p(X, 1.0, augment_labels=torch.zeros(3, 9)), "augment_labels:"),
        (lambda p: p(X[:1].expand(5, -1, -1, -1), 1.0, augment_labels=torch.zeros(2, 9)), "augment_labels:"),
        (lambda p: p(X, 1.0, augment_labels=torch.zeros(9)), "augment_labels:"),
        (lambda p: p.network(X, torch.ones(3)), "c_noise:"),
        (lambda p: p.modulation(torch.ones(2), torch.zeros(2, 11)), "class_labels:"),
        (lambda p: p.modulation(torch.ones(2), torch.zeros(3, 10)), "class_labels:"),
        (lambda p: p.run(X, torch.zeros(1, p.columns + 1)), "modulation:"),
        (lambda p: p.run(X, torch.zeros(3, p.columns)), "modulation:"),
        (lambda p: p.run(torch.zeros(2, 4, 8, 8), torch.zeros(1, p.columns)), "x:"),
        (lambda p: p.plan(8, 8).run(torch.zeros(2, 3, 4, 4), torch.zeros(1, p.columns)), "x:"),
    ],
)
def test_bad_inputs_are_named(call, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        call(edm_fast.prepare(tiny()))


def test_force_fp32_of_a_16_bit_plan():
    with pytest.raises(ValueError, match="^force_fp32:"):
        edm_fast.prepare(tiny(), torch.bfloat16)(X, 1.0, force_fp32=True)


@pytest.mark.parametrize("rows", [1, 2, 17, 33])
def test_a_row_of_a_linear_layer_is_its_own(rows):
    torch.manual_seed(0)
    first, second = (torch.nn.Linear(11, width, bias=bias) for width, bias in ((9, True), (30, False)))
    packed = PackedLinear(first, second)
    x, addend = torch.randn(rows, 11), torch.randn(rows, 39)
    whole = packed(x, silu=True, addend=addend)
    assert_same_bits(whole, torch.cat([packed(x[i : i + 1], True, addend[i : i + 1]) for i in range(rows)]))
    with torch.no_grad():
        results = []
        for dtype in (torch.float32, torch.float64):
            parts = [layer.to(dtype)(x.to(dtype)) for layer in (first, second)]
            results.append(torch.nn.functional.silu(torch.cat(parts, dim=1) + addend.to(dtype)))
    assert_as_exact_as_eager(whole, *results)
