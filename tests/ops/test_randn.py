"""Noise is a pure function of (seed, draw, element), with the same bits in every implementation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tolerance import assert_same_bits

import edm_fast
from edm_fast.ops.backends import extension
from edm_fast.reference.randn import fma, philox4x32_10
from edm_fast.reference.randn import randn as reference_randn

SEEDS = [0, 1, 2, 12345, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63)]

# Random123's published vectors: (counter, key) → words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter, key, words):
    as_tensors = [torch.tensor([word]) for word in counter]
    reference = philox4x32_10([torch.tensor([word]) for word in key], as_tensors)
    assert tuple(int(word) for word in reference) == words
    compiled = extension().noise_words(key[0] | key[1] << 32, counter[0] | counter[1] << 32, counter[2], counter[3])
    assert compiled == words


def exact_normal(seed: int, draw: int, element: int) -> float:
    """Box-Muller in float64 from the compiled module's words."""
    words = extension().noise_words(seed, element // 4, draw, 0)
    pair = element % 4 // 2
    u = (words[2 * pair] + 0.5) / 2**32
    angle = 2 * math.pi * (words[2 * pair + 1] + 0.5) / 2**32
    return math.sqrt(-2 * math.log(u)) * (math.sin(angle) if element % 2 else math.cos(angle))


def test_values_are_box_muller_of_the_words(backend, device):
    noise = edm_fast.randn((999,), [77], 3, backend=backend, device=device)[0].cpu()
    exact = torch.tensor([exact_normal(77, 3, element) for element in range(999)], dtype=torch.float64)
    # A few float32 roundings of numbers below 6.8.
    assert (noise.double() - exact).abs().max() <= 8 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("shape", [(1,), (3,), (4,), (17,), (3, 5, 7), (1, 8, 8), (3, 32, 32), (2, 65, 63), (4100,)])
def test_every_backend_gives_the_reference_bits(backend, device, shape):
    seeds = torch.tensor([seed - (seed >> 63 << 64) if seed > 0 else seed for seed in SEEDS])
    for draw in (0, 1, 2**32 - 1):
        expected = reference_randn(shape, seeds, draw, 0)
        assert_same_bits(edm_fast.randn(shape, SEEDS, draw, backend=backend, device=device), expected)


def test_every_instruction_set_gives_the_same_bits(isa):
    expected = reference_randn((3, 33, 31), torch.arange(5), 4, 2)
    for name in isa.available_isas():
        isa.use_isa(name)
        assert isa.isa() == name
        assert_same_bits(edm_fast.randn((3, 33, 31), range(5), 4, domain=2, backend="cpu"), expected)


def test_a_million_elements_agree_in_every_bit(backend, device):
    if backend == "simt":
        pytest.skip("a million fibres take minutes; the emulator runs the smaller shapes")
    expected = reference_randn((2**20 + 3,), torch.tensor([9]), 1, 0)
    assert_same_bits(edm_fast.randn((2**20 + 3,), [9], 1, backend=backend, device=device), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_the_float32_noise_cast(backend, device, dtype):
    noise = edm_fast.randn((3, 9, 9), range(3), 1, dtype=dtype, backend=backend, device=device)
    assert_same_bits(noise, edm_fast.randn((3, 9, 9), range(3), 1).to(dtype))


def test_channels_last_holds_the_same_samples(backend, device):
    noise = edm_fast.randn((3, 9, 7), range(4), memory_format=torch.channels_last, backend=backend, device=device)
    assert noise.is_contiguous(memory_format=torch.channels_last)
    assert_same_bits(noise.contiguous(), edm_fast.randn((3, 9, 7), range(4)))


def test_a_sample_does_not_depend_on_its_batch(backend, device):
    whole = edm_fast.randn((3, 10, 10), SEEDS, 2, backend=backend, device=device)
    for index, seed in enumerate(SEEDS):
        assert_same_bits(edm_fast.randn((3, 10, 10), seed, 2, backend=backend, device=device)[0], whole[index])


def test_every_element_is_written_and_nothing_else(backend, device):
    """NaN guard bands around the output, which is a slice of a larger tensor at an odd offset."""
    guarded = torch.full([5, 4, 6, 7], torch.nan, device=device)
    inner = guarded[1:4, 1:4]
    from edm_fast.ops.randn import _run

    if backend == "reference":
        pytest.skip("the reference returns a tensor of its own")
    _run(backend, inner, torch.arange(3, device=device), 0, 0)
    assert_same_bits(inner.contiguous(), edm_fast.randn((3, 6, 7), range(3)))
    guarded[1:4, 1:4] = torch.nan
    assert guarded.isnan().all()


@pytest.mark.parametrize(("seeds", "shape"), [([], (3, 4, 4)), ([1, 2], (0, 4, 4)), ([1], (3, 0, 4))])
def test_empty_batches_and_samples(backend, device, seeds, shape):
    assert edm_fast.randn(shape, seeds, backend=backend, device=device).shape == (len(seeds), *shape)


def test_a_batch_of_257_and_many_elements(backend, device):
    noise = edm_fast.randn((5,), range(257), backend=backend, device=device)
    assert_same_bits(noise, reference_randn((5,), torch.arange(257), 0, 0))


def test_fma_rounds_once():
    """Against exact rational arithmetic, on operands that make double rounding go wrong if it can."""
    from fractions import Fraction

    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2**23, [3, 4000], generator=generator)
    exponents = torch.randint(-30, 2, [3, 4000], generator=generator)
    a, b, c = (1 + bits.double() * 2.0**-23) * 2.0 ** exponents.double()
    # Halfway cases: c far below the last bit of a·b.
    c[:2000] = torch.where(torch.arange(2000) % 2 == 0, 1, -1) * 2.0 ** -(60 + torch.arange(2000) % 7).double()
    a[:2000] = 1 + 2.0**-12
    b[:2000] = 1 + 2.0**-12 + (torch.arange(2000) % 5) * 2.0**-22
    a, b, c = a.float(), b.float(), c.float()
    result = fma(a, b, c)
    for x, y, z, got in zip(a.tolist(), b.tolist(), c.tolist(), result, strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        below, above = torch.nextafter(got, torch.tensor(-math.inf)), torch.nextafter(got, torch.tensor(math.inf))
        error = abs(Fraction(float(got)) - exact)
        for neighbour in (below, above):
            distance = abs(Fraction(float(neighbour)) - exact)
            even = int(got.view(torch.int32)) % 2 == 0
            assert error < distance or (error == distance and even), (x, y, z)


SAMPLES = 1 << 20


@pytest.fixture(scope="module")
def long_stream() -> torch.Tensor:
    return edm_fast.randn((SAMPLES,), [2024])[0].double()


def test_moments_lie_within_five_standard_errors(long_stream):
    # Mean and standard error of z^k for standard normal z: E z^k, and sqrt((E z^2k - (E z^k)^2) / n).
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((long_stream**power).mean()) - mean) < 5 * math.sqrt(variance / SAMPLES), power


def test_distribution_is_normal(long_stream):
    assert stats.kstest(long_stream.numpy(), "norm").pvalue > 1e-4


def test_tails_reach_beyond_five_and_stay_below_the_bound():
    noise = edm_fast.randn((1 << 16,), range(128))
    assert 4.8 < float(noise.abs().max()) < 6.77


def test_streams_are_uncorrelated():
    base = edm_fast.randn((SAMPLES,), [5], 0)[0]
    others = {
        "next seed": edm_fast.randn((SAMPLES,), [6], 0)[0],
        "seed with a high bit": edm_fast.randn((SAMPLES,), [5 + 2**32], 0)[0],
        "next draw": edm_fast.randn((SAMPLES,), [5], 1)[0],
        "other domain": edm_fast.randn((SAMPLES,), [5], 0, domain=2)[0],
        **{f"lag {lag}": base.roll(lag) for lag in (1, 2, 3, 4, 8, 64)},
    }
    for (name, a), (other, b) in itertools.combinations({"base": base, **others}.items(), 2):
        correlation = float((a.double() * b.double()).mean())
        assert abs(correlation) < 5 / math.sqrt(SAMPLES), (name, other)


@settings(max_examples=50, deadline=None)
@given(
    seeds=st.lists(st.integers(-(2**63), 2**64 - 1), max_size=4),
    draw=st.integers(0, 2**32 - 1),
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=3),
)
def test_any_seeds_draws_and_shapes(seeds, draw, shape):
    noise = edm_fast.randn(shape, seeds, draw)
    assert noise.shape == (len(seeds), *shape)
    assert_same_bits(noise, edm_fast.randn(shape, seeds, draw, backend="reference"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seeds": [1.5]}, TypeError, "seeds"),
        ({"seeds": [True]}, TypeError, "seeds"),
        ({"seeds": ["1"]}, TypeError, "seeds"),
        ({"seeds": torch.tensor([1.0])}, TypeError, "seeds"),
        ({"seeds": torch.zeros([1, 1], dtype=torch.int64)}, ValueError, "seeds"),
        ({"seeds": [2**64]}, ValueError, "seeds"),
        ({"seeds": [-(2**63) - 1]}, ValueError, "seeds"),
        ({"draw": -1}, ValueError, "draw"),
        ({"draw": 2**32}, ValueError, "draw"),
        ({"draw": 1.0}, TypeError, "draw"),
        ({"domain": 2**32}, ValueError, "domain"),
        ({"dtype": torch.int32}, TypeError, "dtype"),
        ({"shape_per_sample": (3, -1)}, ValueError, "shape_per_sample"),
        ({"shape_per_sample": (3,), "memory_format": torch.channels_last}, ValueError, "memory_format"),
        ({"backend": "gpu"}, ValueError, "backend"),
        ({"device": "nope"}, ValueError, "device"),
        ({"backend": "cuda"}, ValueError, "backend"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=f"^{message}:"):
        edm_fast.randn(**{"shape_per_sample": (3, 4, 4), "seeds": [1], **arguments})


def test_numpy_integers_are_integers():
    expected = edm_fast.randn((3,), [5], 2)
    assert_same_bits(edm_fast.randn((3,), np.array([5]), np.int64(2)), expected)


def test_a_cuda_device_that_cannot_be_used_says_why():
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(RuntimeError, match="^device: 'cuda' cannot be used: "):
        edm_fast.randn((3,), [5], device="cuda")


def test_the_torch_operator_passes_opcheck():
    out = torch.empty([2, 3, 4, 4])
    torch.library.opcheck(torch.ops.edm_fast.randn_.default, (out, torch.arange(2), 0, 0))
