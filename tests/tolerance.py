"""How close is close enough: every numeric bound of the tests, in one place, with its reason."""

from __future__ import annotations

import torch

# A sampler against the reference sampler with the same noise: the same float64 equations, in another order.
SAMPLER_FLOAT64 = 1e-10
# The same with a float32 network or a float32 state: some tens of roundings of 6e-8.
SAMPLER_FLOAT32 = 1e-5


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal element by element, NaN equal to NaN, and of the same shape and dtype."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    actual, expected = actual.cpu(), expected.cpu()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    assert bool(same.all()), f"{int((~same).sum())} of {same.numel()} elements differ"


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error relative to the largest expected magnitude; NaN in either counts as infinite."""
    error = (actual.cpu().double() - expected.cpu().double()).abs().max() / expected.cpu().double().abs().max()
    return float("inf") if error.isnan() else float(error)
