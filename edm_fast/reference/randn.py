"""Philox4x32-10 and Box-Muller in PyTorch's integer and float arithmetic: the oracle for `edm_fast.randn`.

Words are held in int64 tensors, so that products of 32-bit numbers do not overflow into the sign unnoticed. A float32
fma is emulated exactly: see `fma`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

# Minimax polynomials, highest power first; the constants of csrc/include/edm_fast/normal.h.
_LOG = (
    "0x1.147294p-4 -0x1.de012ap-4 0x1.e6bfe8p-4 -0x1.fc28d8p-4 0x1.233ba4p-3 "
    "-0x1.555c44p-3 0x1.99a476p-3 -0x1.000006p-2 0x1.555548p-2"
)
_SINE = "-0x1.995404p-13 0x1.110778p-7 -0x1.555546p-3"
_COSINE = "0x1.99e908p-16 -0x1.6c0c2ap-10 0x1.55554ap-5"
_SQRT_HALF_WORD = 0xB504F334
_SQRT_HALF_BITS = 0x3F3504F3


def multiply_32(a: int, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of a·b for 32-bit numbers, by 16-bit halves of b."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32_10(key: Sequence[torch.Tensor], counter: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Ten rounds of Philox4x32 on words held in int64 tensors that broadcast against each other."""
    key0, key1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        high0, low0 = multiply_32(_MULTIPLIERS[0], c0)
        high1, low1 = multiply_32(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 = (key0 + _WEYL[0]) & _MASK
        key1 = (key1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def fma(a: torch.Tensor, b: torch.Tensor | float, c: torch.Tensor | float) -> torch.Tensor:
    """a·b + c in float32 with one rounding.

    The product of two float32 numbers is exact in float64; its sum with c may not be, and rounding twice can go wrong
    at a tie. So the float64 sum is rounded to odd: where it is inexact and its last bit is even, it moves by one unit
    towards the exact sum, and the rounding to float32 then sees that it is not a tie.
    """
    product = a.double() * _double(b)
    addend = _double(c)
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)
    bits = total.view(torch.int64)
    away = (error > 0) == (total > 0)
    nudged = torch.where((error != 0) & (bits & 1 == 0), torch.where(away, bits + 1, bits - 1), bits)
    return nudged.view(torch.float64).float()


def _double(value: torch.Tensor | float) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.double()
    # A constant of the kernels: its float32 value.
    return torch.tensor(value, dtype=torch.float32).double()


def _horner(coefficients: str, x: torch.Tensor) -> torch.Tensor:
    first, *rest = [float.fromhex(text) for text in coefficients.split()]
    value = torch.full_like(x, first)
    for coefficient in rest:
        value = fma(value, x, coefficient)
    return value


def log_uniform(word: torch.Tensor) -> torch.Tensor:
    """ln((word + 1/2) / 2³²) in float32."""
    uniform = fma(word.float(), 2.0**-32, 2.0**-33)
    bits = uniform.view(torch.int32).long()
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    mantissa = (bits - (exponent << 23)).int().view(torch.float32)
    high = word >= _SQRT_HALF_WORD
    f = torch.where(high, -fma((word ^ _MASK).float(), 2.0**-32, 2.0**-33), mantissa - 1)
    log_1p = fma(f * f, fma(_horner(_LOG, f), f, -0.5), f)
    return fma(torch.where(high, 0, exponent).float(), float.fromhex("0x1.62e430p-1"), log_1p)


def sine_cosine_turn(word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sine and cosine of 2π (word + 1/2) / 2³² in float32."""
    quadrant = ((word + (1 << 29)) & _MASK) >> 30
    remainder = (word - (quadrant << 30)) & _MASK
    remainder = torch.where(remainder >= 1 << 31, remainder - (1 << 32), remainder)
    x = fma(remainder.float(), float.fromhex("0x1.921fb6p-30"), float.fromhex("0x1.921fb6p-31"))
    z = x * x
    sine = fma(x * z, _horner(_SINE, z), x)
    cosine = fma(z * z, _horner(_COSINE, z), fma(z, -0.5, 1.0))
    odd = quadrant & 1 == 1
    a = torch.where(odd, cosine, sine)
    b = torch.where(odd, sine, cosine)
    return torch.where(quadrant & 2 != 0, -a, a), torch.where((quadrant + 1) & 2 != 0, -b, b)


def noise_words(seeds: torch.Tensor, blocks: int, draw: int, domain: int) -> list[torch.Tensor]:
    """The four words [N, blocks] of the first blocks for int64 seeds [N]."""
    block = torch.arange(blocks, device=seeds.device)
    key = [(seeds & _MASK)[:, None], ((seeds >> 32) & _MASK)[:, None]]
    constant = [torch.full_like(block, value) for value in (draw, domain)]
    return philox4x32_10(key, [block & _MASK, block >> 32, *constant])


def randn(shape_per_sample: Sequence[int], seeds: torch.Tensor, draw: int, domain: int = 0) -> torch.Tensor:
    """float32 noise [N, *shape_per_sample] for int64 seeds [N]; see `edm_fast.randn`."""
    elements = prod(shape_per_sample)
    words = noise_words(seeds, (elements + 3) // 4, draw, domain)
    values = []
    for radius_word, angle_word in ((words[0], words[1]), (words[2], words[3])):
        # Through float64, which gives the correctly rounded float32 root; torch's own may be one unit off.
        radius = torch.sqrt(-2.0 * log_uniform(radius_word).double()).float()
        sine, cosine = sine_cosine_turn(angle_word)
        values += [radius * cosine, radius * sine]
    noise = torch.stack(values, dim=-1).flatten(1)[:, :elements]
    return noise.reshape(seeds.shape[0], *shape_per_sample)
