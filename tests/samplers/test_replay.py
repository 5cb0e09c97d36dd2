"""Captured steps: the bits of the loop, for every table, batch and label; one capture for many; callbacks; failures.

Captures are emulated on the CPU, where a replay runs the captured function again.
"""

from __future__ import annotations

import functools
import threading

import pytest
import torch
from conftest import cuda_usable
from tiny_networks import tiny
from tolerance import assert_same_bits

import edm_fast
from edm_fast.plan import Prepared, prepare
from edm_fast.plan import prepared as prepared_module
from edm_fast.plan.graphs import CapturedPlan
from edm_fast.plan.steps import StepTable
from edm_fast.samplers import evaluation, execution, replay
from edm_fast.samplers.edm import edm_table
from edm_fast.samplers.replay import CapturedStep, room_for
from edm_fast.samplers.table import whole_steps

SEEDS = [3, 5, -7]


class FakeCapture:
    """Captures like CUDA: the function runs once, and a replay runs it again; what it wrote then means nothing."""

    def __init__(self):
        self.captures = self.replays = 0

    def __call__(self, function):
        self.captures += 1
        result = function()

        def replay():
            self.replays += 1
            result.copy_(function())

        return replay, result.fill_(torch.nan)


@pytest.fixture
def capture(monkeypatch):
    """Let networks on the CPU be prepared as on a device, with this capture."""
    fake = FakeCapture()
    monkeypatch.setattr(Prepared, "_make_cpu_plan", Prepared._make_device_plan)
    monkeypatch.setattr(prepared_module, "CapturedPlan", functools.partial(CapturedPlan, capture=fake))
    return fake


@pytest.fixture
def steps(monkeypatch):
    """The captured steps that were made."""
    made = []

    class Recorded(CapturedStep):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(replay, "CapturedStep", Recorded)
    return made


def looped(net, *args, **options):
    """The same without captured steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "replay_steps", lambda *arguments: 0)
        return edm_fast.sample(net, *args, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"num_steps": 1},
        {"num_steps": 2},
        {"num_steps": 7},
        {"num_steps": 6, "S_churn": 3},
        {"num_steps": 5, "solver": "euler"},
        {"num_steps": 5, "alpha": 0.5},
        {"num_steps": 4, "state_dtype": torch.float32},
        {"num_steps": 4, "schedule": "vp", "scaling": "vp", "discretization": "vp"},
    ],
    ids=str,
)
@pytest.mark.parametrize("labels", [None, [1, 1, 1], [0, 3, 1]], ids=["unlabelled", "one label", "labels"])
def test_replays_give_the_loops_bits(capture, steps, options, labels):
    net = prepare(tiny())
    for batch in (1, 2, 3):
        expected = looped(net, SEEDS, labels, batch=batch, **options)
        assert_same_bits(edm_fast.sample(net, SEEDS, labels, batch=batch, **options), expected)
    assert bool(steps) == (options["num_steps"] > 1)


def test_one_capture_serves_tables_of_similar_length(capture, steps):
    net = prepare(tiny())
    for num_steps, S_churn in ((18, 0), (17, 5), (18, 40), (20, 0)):
        options = {"num_steps": num_steps, "S_churn": S_churn}
        assert_same_bits(edm_fast.sample(net, SEEDS, **options), looped(net, SEEDS, **options))
    assert len(steps) == 1


@pytest.mark.parametrize("bad_from", [0, 4, 5, 8])
def test_a_replay_says_where_a_sample_is_first_not_finite(capture, steps, bad_from, monkeypatch):
    """From an evaluation on, the second sample's label gives a row of NaN."""
    real = evaluation.PlanEvaluation.modulations

    def modulations(self, first):
        rows, of_sample = real(self, first)
        for index in range(max(bad_from - first, 0), len(rows)):
            rows[index, 1] = torch.nan
        return rows, of_sample

    monkeypatch.setattr(evaluation.PlanEvaluation, "modulations", modulations)
    net, latents = prepare(tiny()), torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    table = edm_table(net.net, num_steps=5)
    labels = torch.eye(10)[[4, 1, 4]]  # distinct rows are sorted: class 4 first
    found = []
    for replays in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not replays:
                patch.setattr(execution, "replay_steps", lambda *arguments: 0)
            first_bad = torch.full([3], 99)
            of_net = evaluation.PlanEvaluation(net, table, labels)
            execution.execute(table, of_net, latents, first_bad=first_bad)
            found.append(first_bad.tolist())
    assert found == [[99, bad_from + 1, 99]] * 2
    assert len(steps) == 1


def test_a_heun_step_is_one_replay(capture):
    net = prepare(tiny())
    edm_fast.sample(net, SEEDS, num_steps=9)
    # Eight steps of two evaluations, and the last evaluation by itself.
    assert capture.replays == 8 + 1


def test_modulation_rows_come_in_windows(capture, monkeypatch):
    net = prepare(tiny())
    monkeypatch.setattr(evaluation, "_MODULATION_BYTES", 4 * 3 * net.columns * 5)
    expected = looped(net, SEEDS, [0, 1, 2], num_steps=12)
    loads = []
    load = StepTable.load
    monkeypatch.setattr(StepTable, "load", lambda self, *args: (loads.append(len(args[0])), load(self, *args)))
    assert_same_bits(edm_fast.sample(net, SEEDS, [0, 1, 2], num_steps=12), expected)
    assert loads == [4, 4, 4, 4, 4, 3]  # 23 evaluations, the last of which is none of the replays'


@pytest.mark.parametrize("gnet", [None, tiny(seed=11)], ids=["without labels", "another network"])
@pytest.mark.parametrize("interval", [(0, torch.inf), (0.4, 30.0), (0.5, 20.0)], ids=str)
def test_guided_replays_give_the_loops_bits(capture, steps, gnet, interval):
    net = prepare(tiny())
    options = {"num_steps": 12, "S_churn": 3, "guidance": 2.0, "gnet": gnet, "guidance_interval": interval}
    expected = looped(net, SEEDS, [0, 3, 1], **options)
    assert_same_bits(edm_fast.sample(net, SEEDS, [0, 3, 1], **options), expected)
    # One with the guide and, where there is an outside, one without.
    assert len(steps) == (1 if interval[0] == 0 else 2)


def test_callbacks_see_what_they_see_without(capture):
    net = prepare(tiny())

    def seen(sampler):
        found = []
        sampler(net, SEEDS, num_steps=5, S_churn=2, callback=found.append)
        return found

    expected, actual = seen(looped), seen(edm_fast.sample)
    assert [(p.step, p.num_steps, p.sigma) for p in actual] == [(p.step, p.num_steps, p.sigma) for p in expected]
    assert len(actual) == 5
    for ours, theirs in zip(actual, expected, strict=True):
        assert_same_bits(ours.x, theirs.x)
        assert_same_bits(ours.denoised, theirs.denoised)


def test_a_callback_that_raises_leaves_the_step_usable(capture, steps):
    net = prepare(tiny())

    def stop(progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edm_fast.sample(net, SEEDS, num_steps=5, callback=stop)
    found = []
    images = edm_fast.sample(net, SEEDS, num_steps=5, callback=found.append)
    assert_same_bits(images, looped(net, SEEDS, num_steps=5))
    assert len(steps) == 1
    assert not steps[0].lock.locked()


def test_while_a_step_is_in_use_others_take_the_loop(capture, steps):
    net = prepare(tiny())
    expected = looped(net, SEEDS, num_steps=4)
    edm_fast.sample(net, SEEDS, num_steps=4)
    before = capture.replays
    with steps[0].lock:
        assert_same_bits(edm_fast.sample(net, SEEDS, num_steps=4), expected)
    assert capture.replays - before == 7  # single evaluations


def test_threads_get_their_own_images(capture):
    net = prepare(tiny())
    expected = {seed: looped(net, [seed], num_steps=6) for seed in range(4)}
    results = {}

    def work(seed):
        results[seed] = [edm_fast.sample(net, [seed], num_steps=6) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, images in results.items():
        for image in images:
            assert_same_bits(image, expected[seed])


def test_changed_weights_are_captured_again(capture, steps):
    net = tiny()
    prepared = prepare(net)
    edm_fast.sample(prepared, SEEDS, num_steps=4)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.25)
    expected = looped(prepare(net), SEEDS, num_steps=4)
    assert_same_bits(edm_fast.sample(prepared, SEEDS, num_steps=4), expected)
    assert len(steps) == 2


def test_where_captures_fail_the_loop_runs(monkeypatch, caplog):
    def failing(function):
        raise RuntimeError("no such graph")

    monkeypatch.setattr(Prepared, "_make_cpu_plan", Prepared._make_device_plan)
    monkeypatch.setattr(prepared_module, "CapturedPlan", functools.partial(CapturedPlan, capture=failing))
    net = prepare(tiny())
    assert edm_fast.sample(net, SEEDS, num_steps=4).isfinite().all()
    [record] = caplog.records
    assert "no such graph" in record.message


def test_a_callers_noise_is_not_replayed(capture, steps):
    net = prepare(tiny())
    latents = edm_fast.randn((net.img_channels, net.img_resolution, net.img_resolution), SEEDS)
    edm_fast.samplers.edm_sampler(net, latents, num_steps=4, S_churn=2, randn_like=torch.zeros_like)
    assert not steps


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_steps": 1}, (0, 1)),
        ({"num_steps": 2}, (1, 2)),
        ({"num_steps": 18}, (17, 2)),
        ({"num_steps": 18, "solver": "euler"}, (17, 1)),
    ],
    ids=str,
)
def test_whole_steps(options, expected):
    assert whole_steps(edm_table(None, **options)) == expected


def test_room_is_the_next_power_of_two():
    assert [room_for(count) for count in (0, 1, 2, 3, 4, 5, 36)] == [1, 1, 2, 4, 4, 8, 64]


@pytest.mark.skipif(not cuda_usable(), reason="no CUDA device, or no CUDA kernels in this build")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("more", [{}, {"S_churn": 4}, {"guidance": 2.0, "guidance_interval": (0.5, 20.0)}], ids=str)
def test_on_cuda_replays_give_the_loops_bits(dtype, more, caplog):
    net = prepare(edm_fast.load(device="cuda"), dtype=dtype)
    options = {"class_labels": [1, 2, 3], "num_steps": 18, **more}
    expected = looped(net, SEEDS, **options)
    for _ in range(2):
        assert_same_bits(edm_fast.sample(net, SEEDS, **options), expected)
    assert not caplog.records


@pytest.mark.skipif(not cuda_usable(), reason="no CUDA device, or no CUDA kernels in this build")
def test_on_cuda_captures_outlive_those_that_were_dropped():
    """More shapes than a plan keeps; those left, and the first again, must not use what went with the others."""
    net = prepare(edm_fast.load(device="cuda"))
    for batch in (*range(1, 12), 11, 10, 1):
        seeds = range(batch)
        assert_same_bits(edm_fast.sample(net, seeds, num_steps=4), looped(net, seeds, num_steps=4))


@pytest.mark.skipif(not cuda_usable() or torch.cuda.device_count() < 2, reason="needs two devices and CUDA kernels")
def test_on_cuda_each_device_captures_its_own():
    images = {
        device: edm_fast.sample(prepare(edm_fast.load(device=device)), SEEDS, num_steps=4)
        for device in ("cuda:0", "cuda:1")
    }
    for device, found in images.items():
        assert found.device == torch.device(device)
        assert_same_bits(found, looped(prepare(edm_fast.load(device=device)), SEEDS, num_steps=4))
