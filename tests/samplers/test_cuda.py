"""Sampling on a GPU: the CPU's bits where our kernels do the work, on any stream and device."""

from __future__ import annotations

import pytest
import torch
from conftest import cuda_usable
from tolerance import SAMPLER_FLOAT32, assert_same_bits, relative_error

import edm_fast
from edm_fast.reference.exact_denoisers import GaussianDenoiser
from edm_fast.samplers import edm_sampler

pytestmark = pytest.mark.skipif(not cuda_usable(), reason="no CUDA device, or no CUDA kernels in this build")

CUDA = torch.device("cuda", 0)
SEEDS = [0, 1, -1, 2**40, 77]
# Its arithmetic is elementwise IEEE operations, so it gives the same bits everywhere.
NET = GaussianDenoiser(std=0.5, img_channels=3, img_resolution=17)
OPTIONS = {"num_steps": 12, "S_churn": 6}


def test_the_gpu_gives_the_cpus_bits():
    expected = edm_fast.sample(NET, SEEDS, device="cpu", **OPTIONS)
    for batch in (1, 2, 5):
        assert_same_bits(edm_fast.sample(NET, SEEDS, device=CUDA, batch=batch, **OPTIONS), expected)


def test_repeats_give_the_same_bits():
    first = edm_fast.sample(NET, range(64), device=CUDA, **OPTIONS)
    for _ in range(3):
        assert_same_bits(edm_fast.sample(NET, range(64), device=CUDA, **OPTIONS), first)


def test_edm_sampler_stays_on_the_device():
    latents = edm_fast.randn((3, 17, 17), SEEDS)
    images = edm_sampler(NET, latents.to(CUDA), num_steps=8)
    assert images.device == CUDA
    assert_same_bits(images, edm_sampler(NET, latents, num_steps=8))


def test_work_goes_to_the_current_stream():
    """A stream that is held up by a long kernel must hold up the sampler too."""
    expected = edm_fast.sample(NET, SEEDS, device="cpu", **OPTIONS)
    stream = torch.cuda.Stream(CUDA)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        latents = edm_fast.randn((3, 17, 17), SEEDS, device=CUDA)
        images = edm_sampler(NET, latents, num_steps=3)
        finished = torch.cuda.Event()
        finished.record(stream)
    assert not finished.query()
    finished.synchronize()
    assert_same_bits(images, edm_sampler(NET, latents.cpu(), num_steps=3))
    assert_same_bits(edm_fast.sample(NET, SEEDS, device=CUDA, **OPTIONS), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_the_second_device_works_and_the_current_one_stays():
    current = torch.cuda.current_device()
    images = edm_fast.sample(NET, SEEDS, device="cuda:1", **OPTIONS)
    assert images.device == torch.device("cuda", 1)
    assert torch.cuda.current_device() == current
    assert_same_bits(images, edm_fast.sample(NET, SEEDS, device="cpu", **OPTIONS))


def test_mixed_devices_are_refused():
    net = edm_fast.load(device=CUDA)
    with pytest.raises(ValueError, match="^latents"):
        edm_sampler(net, torch.zeros([1, 1, 8, 8]))
    with pytest.raises(ValueError, match="^device"):
        edm_fast.sample(net, [1], device="cpu")


def test_the_shipped_model_in_float32_and_float16():
    labels = [i % 10 for i in range(20)]
    expected = edm_fast.sample(edm_fast.load(), range(20), labels)
    net = edm_fast.load(device=CUDA)
    # PyTorch's convolutions round differently there, and 35 evaluations add up.
    assert relative_error(edm_fast.sample(net, range(20), labels), expected) <= 100 * SAMPLER_FLOAT32
    net.use_fp16 = True
    assert relative_error(edm_fast.sample(net, range(20), labels), expected) <= 0.1


def test_a_captured_graph_goes_through_the_table_by_an_offset_on_the_device():
    """solver_step reads its row number from device memory, so one captured launch serves every row."""
    from edm_fast.ops import solver_step

    table = torch.randn([4, 32], dtype=torch.float64, device=CUDA)
    table[:, 28] = torch.arange(4)
    start = torch.randn([2, 3, 5, 5], dtype=torch.float64, device=CUDA)
    seeds, output = torch.arange(2, device=CUDA), torch.randn([2, 3, 5, 5], device=CUDA)
    state = [start.clone() for _ in range(4)]
    row = torch.zeros(1, dtype=torch.int64, device=CUDA)

    def step(registers, index, offset):
        solver_step(registers, table, index, row_offset=offset, model_output=output, guide_output=output, seeds=seeds)

    step([tensor.clone() for tensor in state], 0, row)  # loads the kernel before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(state, 0, row)
    for tensor in state:
        tensor.copy_(start)
    eager = [start.clone() for _ in range(4)]
    for index in range(4):
        row.fill_(index)
        graph.replay()
        step(eager, index, None)
    for replayed, expected in zip(state, eager, strict=True):
        assert_same_bits(replayed, expected)
