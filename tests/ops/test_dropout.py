"""Dropout by seeds: the reference's bits, the right share of zeros, and the same mask for the gradient."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_same_bits

from edm_fast.ops.dropout import dropout
from edm_fast.reference.dropout import dropout as reference_dropout

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SEED = torch.tensor(-77)


def images(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 64, 8, 8), (3, 5, 7, 3), (1, 1, 1, 1), (4, 130, 33, 31), (0, 3, 4, 4)], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.13, 0.999])
def test_the_references_bits(shape, dtype, p):
    x = images(*shape, dtype=dtype)
    ours = dropout(x, p, SEED)
    assert_same_bits(ours, reference_dropout(x, p, SEED))
    assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa, name):
    if name not in isa.available_isas():
        pytest.skip(f"this processor has no {name}")
    isa.use_isa(name)
    for dtype in DTYPES:
        x = images(2, 37, 9, 5, dtype=dtype)
        assert_same_bits(dropout(x, 0.4, SEED), reference_dropout(x, 0.4, SEED))


def test_share_and_independence():
    """A million elements, and their neighbours, runs and draws: each within five standard deviations."""
    ones, p = torch.ones(4, 64, 64, 64), 0.13
    first = dropout(ones, p, torch.tensor(1)).permute(0, 2, 3, 1).flatten() == 0
    second = dropout(ones, p, torch.tensor(2)).permute(0, 2, 3, 1).flatten() == 0
    for pair, expected in [
        (first, p),
        (second, p),
        (first & second, p * p),
        *((first & first.roll(step), p * p) for step in (1, 32, 64, 128, 4096)),
    ]:
        deviation = (expected * (1 - expected) / ones.numel()) ** 0.5
        assert abs(float(pair.double().mean()) - expected) < 5 * deviation


def test_bits_do_not_depend_on_threads_or_layout():
    x, before = images(3, 70, 33, 32), torch.get_num_threads()
    whole = dropout(x, 0.3, SEED)
    assert_same_bits(dropout(x.contiguous(), 0.3, SEED), whole)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert_same_bits(dropout(x, 0.3, SEED), whole)
    finally:
        torch.set_num_threads(before)


def test_the_gradient_has_the_same_mask():
    x, grad = images(2, 48, 9, 9), images(2, 48, 9, 9)
    leaf = x.clone().requires_grad_()
    dropout(leaf, 0.25, SEED).backward(grad)
    assert_same_bits(leaf.grad, reference_dropout(grad, 0.25, SEED))


def test_it_can_be_differentiated_twice():
    leaf = images(1, 16, 4, 4).requires_grad_()
    [grad] = torch.autograd.grad((dropout(leaf, 0.5, SEED) ** 2).sum(), leaf, create_graph=True)
    grad.sum().backward()
    assert_same_bits(leaf.grad, 2 * reference_dropout(reference_dropout(torch.ones_like(leaf), 0.5, SEED), 0.5, SEED))


def test_a_number_is_a_seed():
    x = images(2, 16, 8, 8)
    assert_same_bits(dropout(x, 0.5, -77), dropout(x, 0.5, SEED))
    assert_same_bits(dropout(x, 0.5, 2**64 - 77), dropout(x, 0.5, SEED))


def test_another_default_device_changes_nothing():
    x = images(2, 16, 8, 8)
    with torch.device("meta"):
        assert dropout(x, 0.5).device == x.device


def test_manual_seed_decides():
    x = images(2, 16, 8, 8)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(3)
    assert_same_bits(dropout(x, 0.5), first)
    assert not torch.equal(first, second)


def test_nan_and_infinity_are_as_in_pytorch():
    for value in (torch.nan, torch.inf):
        out = dropout(torch.full([1, 8, 16, 16], value), 0.5, SEED)
        kept = dropout(torch.ones(1, 8, 16, 16), 0.5, SEED) != 0
        assert out[~kept].isnan().all()
        assert_same_bits(out[kept], torch.full_like(out[kept], value))


def test_what_has_no_kernel_is_pytorchs():
    x = images(1, 4, 8, 8)
    for image, p in ((x.double(), 0.5), (x, 1.0)):
        torch.manual_seed(0)
        expected = torch.nn.functional.dropout(image, p)
        torch.manual_seed(0)
        assert_same_bits(dropout(image, p), expected)
        with pytest.raises(ValueError, match="^seed: it is for the kernel"):
            dropout(image, p, SEED)


def test_opcheck_and_compile():
    x = images(2, 16, 8, 8)
    torch.library.opcheck(torch.ops.edm_fast.dropout_.default, (x, SEED, 0.3, torch.empty_like(x)))
    compiled = torch.compile(lambda x: dropout(x, 0.3, SEED), backend="aot_eager", fullgraph=True)
    assert_same_bits(compiled(x), dropout(x, 0.3, SEED))
    leaf = x.clone().requires_grad_()
    compiled(leaf).sum().backward()
    assert_same_bits(leaf.grad, dropout(torch.ones_like(x), 0.3, SEED))


def test_bad_arguments_are_named():
    x = images(1, 4, 8, 8)
    for name, arguments in {
        "x": {"x": x[0]},
        "p": {"p": 1.5},
        "seed": {"seed": torch.tensor([1])},
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: "):
            dropout(**{"x": x, "p": 0.5, "seed": SEED, **arguments})
    with pytest.raises(ValueError, match="^p: got nan"):
        dropout(x, float("nan"))
    for seed in (torch.tensor(1.0), 1.5, "1"):
        with pytest.raises(TypeError, match="^seed"):
            dropout(x, 0.5, seed)
    with pytest.raises(TypeError, match="^p: got 'a'"):
        dropout(x, "a")
    with pytest.raises(ValueError, match="^p: got 1.0; the kernel"):
        torch.ops.edm_fast.dropout_(x, SEED, 1.0, torch.empty_like(x))
