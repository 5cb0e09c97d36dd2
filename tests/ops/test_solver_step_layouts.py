"""solver_step wherever its tensors lie: the same bits, and nothing beside them is written."""

from __future__ import annotations

import pytest
import torch
from rgb_layouts import EXTENTS, PLACES, assert_nothing_beside, interleaved
from solver_rows import Step, assert_same_step, dense_table, heun_like_table
from tolerance import assert_same_bits

from edm_fast.ops.solver_step import (
    DENOISED_FROM_MODEL,
    DENOISED_FROM_STATE,
    NET_INPUT_SCALE,
    ROW_SIZE,
    UPDATE,
    UPDATE_TERMS,
    solver_step,
)


def test_layouts_do_not_matter(backend, device):
    step = Step((2, 3, 6, 5), device)
    expected = step.run(dense_table(), 0, backend)

    def channels_last(tensor):
        return tensor.to(memory_format=torch.channels_last)

    doubled = torch.cat([step.tensors["model_output"]] * 2, dim=1)
    offset = torch.empty(step.tensors["noise"].numel() + 1, dtype=torch.float64, device=device)[1:]
    variants = {
        "model_output": [channels_last(step.tensors["model_output"]), doubled[:, :3], doubled[:, 3:]],
        "guide_output": [channels_last(step.tensors["guide_output"])],
        "noise": [
            channels_last(step.tensors["noise"]),
            offset.view(step.tensors["noise"].shape).copy_(step.tensors["noise"]),
            step.tensors["noise"].transpose(2, 3).contiguous().transpose(2, 3),
        ],
        "net_input": [channels_last(step.tensors["net_input"])],
        "denoised": [channels_last(step.tensors["denoised"])],
    }
    for name, tensors in variants.items():
        for tensor in tensors:
            assert_same_step(
                [part.contiguous() for part in step.run(dense_table(), 0, backend, **{name: tensor})], expected
            )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("state_dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("extents", EXTENTS, ids=str)
def test_networks_images_may_lie_pixel_by_pixel(backend, device, extents, state_dtype, dtype):
    """All of them, or one amid others that do not; in place, too."""
    step = Step((3, 3, *extents), device, state_dtype=state_dtype, dtype=dtype)
    expected = step.run(dense_table(), 0, backend)
    names = ("model_output", "guide_output", "net_input")
    for place in PLACES:
        tensors = {name: interleaved(step.tensors[name], *place) for name in names}
        for name, tensor in tensors.items():
            assert_same_step(step.run(dense_table(), 0, backend, **{name: tensor}), expected)
        state = [tensor.clone() for tensor in step.state]
        given = {**step.tensors, **tensors, "net_input": tensors["model_output"]}
        solver_step(state, dense_table().to(device), 0, backend=backend, **given)
        written = [*state, tensors["model_output"], step.tensors["denoised"]]
        assert_same_step([tensor.cpu().contiguous() for tensor in written], expected)
        assert_nothing_beside(tensors["model_output"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("offset", range(4))
@pytest.mark.parametrize("extents", [(3, 7), (4, 6)], ids=str)
def test_channels_may_lie_apart_and_begin_anywhere(backend, device, extents, offset, dtype):
    """Four elements may or may not be moved at once: within a channel, across two, from an address that allows it."""

    def apart(tensor):
        """The same values, a channel in every second place of rows that begin `offset` elements into their memory."""
        samples, channels, height, width = tensor.shape
        memory = torch.full([2 * tensor.numel() + offset], torch.nan, dtype=tensor.dtype, device=device)
        return memory[offset:].view(samples, channels, 2, height, width)[:, :, 0].copy_(tensor)

    step = Step((2, 3, *extents), device, dtype=dtype)
    expected = step.run(dense_table(), 0, backend)
    tensors = {name: apart(tensor) for name, tensor in step.tensors.items()}
    state = [apart(tensor) for tensor in step.state]
    solver_step(state, dense_table().to(device), 0, backend=backend, **tensors)
    written = [*state, tensors["net_input"], tensors["denoised"]]
    assert_same_step([tensor.cpu().contiguous() for tensor in written], expected)
    for tensor in written:
        tensor.fill_(torch.nan)
        assert tensor._base is not None
        assert tensor._base.isnan().all()


@pytest.mark.parametrize("shape", [(1, 3, 5), (2, 3, 5), (1, 2, 3, 2, 4), (1, 4, 7)], ids=str)
def test_transposed_tensors_of_other_dimensions(backend, device, shape):
    """Read wherever they lie, one sample or many; a state that has no view is refused."""
    step = Step(shape, device)
    expected = step.run(dense_table(), 0, backend)
    for name in ("model_output", "guide_output", "noise"):
        transposed = step.tensors[name].mT.contiguous().mT
        assert not transposed.is_contiguous()
        assert_same_step(step.run(dense_table(), 0, backend, **{name: transposed}), expected)
    if backend != "reference":
        state = [step.state[0].mT.contiguous().mT]
        with pytest.raises(ValueError, match=r"^state\[0\]"):
            solver_step(
                state, heun_like_table().to(device), 0, model_output=step.tensors["model_output"], backend=backend
            )


def test_what_is_written_may_lie_in_what_is_read(backend, device):
    """`denoised` and `net_input` in what the row reads and does not write, element on element."""
    generator = torch.Generator().manual_seed(3)
    values = [torch.randn(2, 3, 5, generator=generator, dtype=torch.float64) for _ in range(4)]
    row = torch.zeros(1, ROW_SIZE, dtype=torch.float64)
    row[0, DENOISED_FROM_STATE], row[0, DENOISED_FROM_MODEL], row[0, NET_INPUT_SCALE] = 0.5, 2.0, 0.25
    row[0, UPDATE : UPDATE + UPDATE_TERMS] = torch.tensor([0.5, -1.5, 0, 0, 3.0, 0.75])

    def run(alias):
        x, kept, output, noise = (value.clone().to(device) for value in values)
        written = {"denoised": torch.empty_like(x), "net_input": torch.empty_like(x), **alias(kept, output, noise)}
        solver_step([x, kept], row.to(device), 0, model_output=output, noise=noise, backend=backend, **written)
        return [x.clone(), *(tensor.clone() for tensor in written.values())]

    apart = run(lambda kept, output, noise: {})
    for alias in (
        lambda kept, output, noise: {"denoised": kept, "net_input": output},
        lambda kept, output, noise: {"denoised": noise, "net_input": kept},
    ):
        for actual, expected in zip(run(alias), apart, strict=True):
            assert_same_bits(actual, expected)


def test_nothing_outside_the_tensors_is_written(backend, device):
    """Outputs are slices of NaN-filled tensors; the rims stay NaN and the insides do not."""
    shape, table = (2, 3, 5, 4), dense_table().to(device)
    step = Step(shape, device)
    guards = {
        name: torch.full([4, 5, *shape[2:]], torch.nan, dtype=dtype, device=device)
        for name, dtype in (("state", torch.float64), ("net_input", torch.float32), ("denoised", torch.float64))
    }
    inner = {name: guard[1:3, 1:4] for name, guard in guards.items()}
    inner["state"].copy_(step.state[0])
    state = [inner["state"], *[tensor.clone() for tensor in step.state[1:]]]
    tensors = {**step.tensors, "net_input": inner["net_input"], "denoised": inner["denoised"]}
    solver_step(state, table, 0, backend=backend, **tensors)
    for name, guard in guards.items():
        assert not inner[name].isnan().any()
        inner[name].fill_(torch.nan)
        assert guard.isnan().all(), name
