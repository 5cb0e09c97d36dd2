"""Forked children and many threads: no hang, the same bits, and the interpreter is free while kernels run."""

from __future__ import annotations

import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tolerance import assert_same_bits

import edm_fast
from edm_fast.ops.backends import extension
from edm_fast.ops.solver_step import NET_INPUT_SCALE, ROW_SIZE, UPDATE, solver_step
from edm_fast.ops.tensors import image_view
from edm_fast.reference.exact_denoisers import GaussianMixtureDenoiser

SHAPE = (3, 64, 64)


@pytest.fixture(autouse=True)
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def kernel_results() -> tuple[bytes, bytes]:
    """Both kernels on sizes that use threads."""
    noise = edm_fast.randn(SHAPE, range(16))
    state = noise.double()
    table = torch.zeros([1, ROW_SIZE], dtype=torch.float64)
    table[0, UPDATE], table[0, UPDATE + 5], table[0, NET_INPUT_SCALE] = 0.5, 1.5, 2
    solver_step([state], table, 0, seeds=torch.arange(16))
    return noise.numpy().tobytes(), state.numpy().tobytes()


def child(queue) -> None:
    queue.put(kernel_results())


def test_a_forked_child_works_after_the_parent_used_threads():
    expected = kernel_results()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    try:
        assert queue.get(timeout=60) == expected
        process.join(timeout=60)
        assert process.exitcode == 0
    finally:
        process.kill()
    assert kernel_results() == expected  # and the parent's threads still work


def test_eight_threads_sampling_at_once_give_the_single_threaded_bits():
    net = GaussianMixtureDenoiser(torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16), [0.2, 0.3])

    def images(start):
        return edm_fast.sample(net, range(start, start + 24), num_steps=5, S_churn=4)

    torch.set_num_threads(1)
    expected = [images(start) for start in range(8)]
    torch.set_num_threads(2)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for result, wanted in zip(pool.map(images, range(8)), expected, strict=True):
                assert_same_bits(result, wanted)


def test_the_interpreter_runs_while_a_kernel_does():
    """Another thread counts during one kernel call; with the interpreter's lock held it could hardly count at all."""
    cpu, out, seeds = extension().cpu, torch.empty([64, 3, 512, 512]), torch.arange(64)
    counts, stop = [0], threading.Event()

    def count():
        while not stop.is_set():
            counts[0] += 1
            time.sleep(0.0005)

    counter = threading.Thread(target=count)
    counter.start()
    try:
        time.sleep(0.01)
        before, start = counts[0], time.perf_counter()
        cpu.randn((64, 3, 512 * 512), seeds.data_ptr(), 0, 0, image_view("out", out), 1)
        during, elapsed = counts[0] - before, time.perf_counter() - start
    finally:
        stop.set()
        counter.join()
    assert elapsed > 0.03, "the call is too short to tell"
    assert during >= 10
