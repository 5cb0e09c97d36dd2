"""Too little memory and numbers that leave their range: the same bits in smaller batches, or the lost seeds named."""

from __future__ import annotations

import resource

import pytest
import torch
from forked_commands import forked_commands
from no_memory import no_memory_for_images
from tiny_networks import tiny
from tolerance import assert_same_bits

import edm_fast
from edm_fast.reference.exact_denoisers import GaussianDenoiser

# Of the address space, beyond what the process has already.
ROOM = 3 << 30


class Hungry(GaussianDenoiser):
    """Takes 1 GiB of address space for each image, which only the allocator knows to refuse."""

    def __init__(self):
        super().__init__(std=0.5)
        self.batches = []

    def __call__(self, x, sigma, class_labels=None):
        torch.empty([len(x), 1 << 30], dtype=torch.uint8)
        self.batches.append(len(x))
        return super().__call__(x, sigma)


@pytest.fixture
def little_memory():
    """An allocator that really runs out."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_memory_that_really_runs_out_halves_the_batch_and_keeps_the_bits(little_memory, caplog):
    net = Hungry()
    images = edm_fast.sample(net, range(9), num_steps=2, batch=8)
    assert max(net.batches) == 2
    assert_same_bits(images, edm_fast.sample(GaussianDenoiser(std=0.5), range(9), num_steps=2))
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 8 images at a time; going on with 4",
        "out of memory with 4 images at a time; going on with 2",
    ]


def test_one_image_that_does_not_fit_says_how_many_bytes_it_wanted(little_memory):
    def net(x, sigma, class_labels):
        return torch.empty([len(x), 5 << 30], dtype=torch.uint8)

    wanted = 5 << 30
    with pytest.raises(MemoryError, match=f"^batch: a single image does not fit in memory; {wanted} bytes more were"):
        edm_fast.sample(net, range(4), num_steps=2, shape=(1, 2, 2))


def overflowing(dtype):
    """Prepared in 16 bits, where class 3 leaves float16: its scales are beyond 65504."""
    net = tiny("adm")
    with torch.no_grad():
        net.model.map_label.weight[:, 3] *= 1e6
    return edm_fast.prepare(net, dtype=dtype)


def test_a_wide_range_in_16_bits_needs_no_second_try(caplog):
    edm_fast.sample(overflowing(torch.bfloat16), [1, 2], [3, 3], num_steps=2)
    assert not caplog.records


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_one_bad_value_at_any_step_names_its_seed_and_step_alone(value, batch):
    """The sample that breaks is told by its latents, so that it is the same in every batch."""
    bad = edm_fast.randn((1, 8, 8), [2**64 - 7], dtype=torch.float64)

    class Breaking(GaussianDenoiser):
        def __call__(self, x, sigma, class_labels=None):
            denoised = super().__call__(x, sigma)
            if float(sigma) == 80:
                broken = (x / sigma - bad).abs().flatten(1).amax(dim=1) < 1e-9
                denoised[broken, 0, 7, 7] = value
            return denoised

    message = "^net: gave NaN or infinity for 1 of [0-9]+ images: seeds 18446744073709551609; first at step 0 of 3"
    with pytest.raises(FloatingPointError, match=message):
        edm_fast.sample(Breaking(std=0.5), [4, -7, 5], num_steps=3, batch=batch, solver="euler")


def test_generate_under_too_little_memory_ends_with_a_message_and_no_image(tmp_path):
    with forked_commands() as commands:
        run = commands.start(
            *("generate", "--outdir", tmp_path / "out", "--seeds", "0-3", "--steps", "1"),
            first=no_memory_for_images,
        )
        assert run.status() == 1
    assert "Error: batch: a single image does not fit in memory; " in run.output
    assert "bytes more were needed" in run.output
    assert "Traceback" not in run.output
    assert not list((tmp_path / "out").glob("*.png"))
