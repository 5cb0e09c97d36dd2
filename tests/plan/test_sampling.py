"""Samplers on prepared networks: the reference's images, and the same bits however the work is divided."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_networks import reference_of, tiny
from tolerance import assert_as_exact_as_eager, assert_same_bits

import edm_fast
from edm_fast.plan import cpu
from edm_fast.plan.prepared import Prepared
from edm_fast.samplers import edm_sampler, evaluation

SEEDS = [3, 14, 15, 92, 65, 35]
CLASSES = [4, 0, 4, 9, 1, 4]


@pytest.fixture
def threads():
    """Sets the number of threads; it is put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def images(net, seeds=SEEDS, classes=CLASSES, **options):
    return edm_fast.sample(net, seeds, classes if net.label_dim else None, num_steps=3, **options)


class ExactNetwork:
    """The reference with F in float64, and the coefficients of float32 noise levels."""

    def __init__(self, net):
        self.net, self.exact = net, reference_of(net, torch.float64)
        names = ("sigma_min", "sigma_max", "img_channels", "img_resolution", "label_dim", "round_sigma")
        vars(self).update({name: getattr(net, name) for name in names})

    def __call__(self, x, sigma, class_labels):
        c_skip, c_out, c_in, c_noise = (part.double() for part in self.net.coefficients(sigma.float()))
        labels = class_labels.double()
        return c_skip * x + c_out * self.exact.model(c_in * x, c_noise.reshape(1), labels)[:, : self.img_channels]


@pytest.mark.parametrize("precond", ["VPPrecond", "VEPrecond", "iDDPMPrecond", "EDMPrecond"])
@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm"])
def test_images_are_the_references(name, precond):
    net = tiny(name, precond)
    exact = images(ExactNetwork(net), S_churn=1.0)
    actual = images(net, S_churn=1.0)
    for eager in (net, reference_of(net)):
        assert_as_exact_as_eager(actual, images(eager, S_churn=1.0, prepare=False), exact, what=name)


def test_networks_are_prepared_unless_that_is_declined(monkeypatch):
    runs = []
    run = Prepared.run
    monkeypatch.setattr(Prepared, "run", lambda self, *arguments: runs.append(1) or run(self, *arguments))
    net = tiny()
    images(net, prepare=False)
    assert not runs
    images(net)
    assert len(runs) == 5
    images(reference_of(net))
    assert len(runs) == 10


@pytest.mark.parametrize("small", [True, False], ids=["samples", "team"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_batches_orders_and_threads_give_the_same_bits(dtype, small, monkeypatch, threads):
    monkeypatch.setattr(cpu, "_SMALL_NETWORK", float("inf") if small else 0)
    prepared = edm_fast.prepare(tiny("adm"), dtype)
    expected = images(prepared)
    order = [5, 2, 0, 4, 1, 3]
    for count, batch in ((1, 1), (2, 4)):
        threads(count)
        assert_same_bits(images(prepared, batch=batch), expected)
        shuffled = images(prepared, [SEEDS[i] for i in order], [CLASSES[i] for i in order], batch=batch)
        assert_same_bits(shuffled, expected[order])


def test_soft_labels_and_none():
    net = tiny()
    rows = torch.nn.functional.one_hot(torch.tensor(CLASSES), 10).float()
    assert_same_bits(images(net, classes=rows), images(net))
    assert_same_bits(images(net, classes=torch.zeros(6, 10)), images(net, classes=None))


def test_one_row_of_labels_for_all_latents():
    net = tiny()
    latents = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    row = torch.eye(10)[4:5]
    expected = edm_sampler(net, latents, row.repeat(3, 1), num_steps=2)
    assert_same_bits(edm_sampler(net, latents, row, num_steps=2), expected)
    assert edm_sampler(net, latents[:0], row[:0], num_steps=2).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("classes", [CLASSES, None], ids=["classes", "one row"])
def test_windows_of_steps_give_the_same_bits(classes, monkeypatch):
    net = tiny()
    windows = []
    make = evaluation.PlanEvaluation.modulations

    def counted(self, first):
        rows = make(self, first)
        windows.append(len(rows[0]))
        return rows

    monkeypatch.setattr(evaluation.PlanEvaluation, "modulations", counted)
    expected = images(net, classes=classes)
    assert len(windows) == 1
    columns = edm_fast.prepare(net).columns
    distinct = 1 if classes is None else len(set(classes))
    # A Heun step has two evaluations; the last has one.
    for fitting, made in ((0, [2, 2, 1]), (1, [2, 2, 1]), (3, [2, 2, 1]), (5, [4, 1]), (6, [5])):
        windows.clear()
        monkeypatch.setattr(evaluation, "_MODULATION_BYTES", 4 * distinct * columns * fitting)
        assert_same_bits(images(net, classes=classes), expected)
        assert windows == made


def test_four_threads_at_once_give_the_same_bits(threads):
    threads(2)
    expected = images(tiny("adm"))
    net = tiny("adm")
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: images(net, batch=4), range(8)):
            assert_same_bits(result, expected)


def child(queue, net) -> None:
    queue.put(images(net).numpy().tobytes())


def test_a_forked_child_samples(threads):
    threads(2)
    net = tiny()
    expected = images(net)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue, net))
    process.start()
    try:
        assert queue.get(timeout=60) == expected.numpy().tobytes()
        process.join(timeout=60)
        assert process.exitcode == 0
    finally:
        process.kill()
    assert_same_bits(images(net), expected)


@pytest.mark.parametrize("own", [True, False], ids=["prepared", "by sample"])
def test_nan_names_the_layer_and_the_seeds(own):
    net = tiny()
    with torch.no_grad():
        net.model.enc["4x4_block0"].conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="seeds 5, 6; first at .*, in layer model.enc.4x4_block0") as caught:
        images(edm_fast.prepare(net) if own else net, [5, 6], [0, 1])
    assert "2 of 2" in str(caught.value)


def test_images_that_overflow_in_16_bits_are_made_again_in_float32():
    net = tiny()
    with torch.no_grad():
        net.model.enc["8x8_conv"].weight.mul_(1e6)
    assert_same_bits(images(edm_fast.prepare(net, torch.float16)), images(net))


def test_a_dtype_that_the_network_asks_for_is_kept():
    net = tiny()
    full = images(net)
    net.compute_dtype = torch.bfloat16
    asked = images(net)
    assert not torch.equal(asked, full)
    assert_same_bits(asked, images(net, prepare=False))
