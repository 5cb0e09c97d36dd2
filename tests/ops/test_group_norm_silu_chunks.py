"""group_norm_silu with the moments of each 64 pixels given, as conv2d_split leaves them."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_as_exact_as_eager, assert_same_bits

from edm_fast.ops.group_norm_silu import group_norm_silu
from edm_fast.reference.conv2d_split import chunk_moments
from edm_fast.reference.group_norm_silu import group_norm_silu as reference


@pytest.mark.parametrize("options", [{}, {"up": True, "plain": True}], ids=["plain", "up"])
def test_moments_by_chunks_of_pixels(backend, device, options):
    """135 pixels are three chunks, the last of 7; the CPU's kernel takes whole images."""
    generator = torch.Generator().manual_seed(5)
    last = torch.channels_last
    x, x2 = (
        (torch.randn([2, channels, 9, 15], generator=generator) * 2 + 3).half().contiguous(memory_format=last)
        for channels in (24, 40)
    )
    weight, bias = torch.randn([2, 64], generator=generator)
    pre_bias = torch.randn([2, 64], generator=generator)
    given = {"x2": x2, "pre_bias": pre_bias, **options}
    moments = [chunk_moments(source).to(device) for source in (x, x2)]
    assert moments[0].shape == (2, 3, 24, 2)
    ours = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    arguments = (x.to(device), weight.to(device), bias.to(device), 8)
    if backend == "cpu":
        with pytest.raises(ValueError, match=r"^moments: got \(2, 3, 24, 2\); the CPU takes those of all pixels"):
            group_norm_silu(*arguments, **ours, moments=moments, backend=backend)
        return
    results = group_norm_silu(*arguments, **ours, moments=moments, backend=backend)
    eager = reference(x, weight, bias, 8, **given)
    doubled = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    exact = reference(x.double(), weight.double(), bias.double(), 8, **doubled)
    for triple in zip(*(part if isinstance(part, tuple) else (part,) for part in (results, eager, exact)), strict=True):
        assert_as_exact_as_eager(*triple)
    if backend == "reference":
        return
    # They are read, and not taken anew.
    moved = [torch.stack([part[..., 0] + 1, part[..., 1]], dim=-1) for part in moments]
    others = group_norm_silu(*arguments, **ours, moments=moved, backend=backend)
    assert not torch.equal(others[0], results[0])
    bad = [moments[0][:, :2], moments[1]]
    with pytest.raises(ValueError, match=r"^moments\[0\]: shape is \(2, 2, 24, 2\); it must be \(2, 3, 24, 2\)"):
        group_norm_silu(*arguments, **ours, moments=bad, backend=backend)
    with pytest.raises(ValueError, match=r"^moments\[1\]: shape is \(2, 40, 2\)"):
        group_norm_silu(*arguments, **ours, moments=[moments[0], moments[1][:, 0]], backend=backend)


def test_few_images_are_spread_over_more_blocks_with_the_same_bits(simt_module):
    x = torch.randn([40, 64, 16, 16], generator=torch.Generator().manual_seed(6)).half()
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.ones([2, 64])
    moments = chunk_moments(x)
    together = group_norm_silu(x, weight, bias, 16, moments=[moments], backend="simt")
    for part in (slice(0, 1), slice(7, 9)):
        alone = group_norm_silu(x[part], weight, bias, 16, moments=[moments[part]], backend="simt")
        assert_same_bits(alone, together[part])
