"""How close is close enough: every numeric bound of the tests, in one place, with its reason."""

from __future__ import annotations

import torch

# A sampler against the reference sampler with the same noise: the same float64 equations, in another order.
SAMPLER_FLOAT64 = 1e-10
# The same with a float32 network or a float32 state: some tens of roundings of 6e-8.
SAMPLER_FLOAT32 = 1e-5

# Images of a network in float16 against one in float32: some tens of roundings of 5e-4, in each of a few steps.
HALF_SAMPLES = 1e-2

# A channel's variance in float32: sums are taken around one of its pixels, which may lie some deviations from the mean.
VARIANCE = 1e-5

# Moments and Fréchet distances in float64, relative to the traces: some hundred roundings of 1e-16, in another order.
STATISTICS_FLOAT64 = 1e-12


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


# An op may err so many times as much as eager PyTorch in the same dtype, both against float64 on the same inputs.
LARGEST_OVER_EAGER, GRADIENT_OVER_EAGER, L2_OVER_EAGER = 2.0, 3.0, 1.5
# ... plus a floor of a few units in the last place of the largest value, since eager sometimes happens to be exact.
FLOOR_ULPS = 4.0


def assert_as_exact_as_eager(
    actual: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor, *, gradient: bool = False, what: str = ""
) -> None:
    """The numerics rule: largest and relative L2 error of `actual` against those of `eager`.

    Args:
        actual: what the op gave.
        eager: the same by eager PyTorch in the same dtype, channels-last.
        exact: the same in float64 on the same (upcast) inputs.
        gradient: gradients get GRADIENT_OVER_EAGER in place of LARGEST_OVER_EAGER, and twice the L2 allowance.
        what: named in the message.
    """
    assert actual.shape == exact.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    assert actual.dtype == eager.dtype, f"{what}: dtype {actual.dtype}, expected {eager.dtype}"
    if actual.numel() == 0:
        return
    ours, theirs, truth = (tensor.detach().cpu().double() for tensor in (actual, eager, exact))
    assert bool(torch.isfinite(ours).all()), f"{what}: not finite"
    ulp = torch.finfo(actual.dtype).eps * float(truth.abs().max())
    largest, largest_eager = float((ours - truth).abs().max()), float((theirs - truth).abs().max())
    factor = GRADIENT_OVER_EAGER if gradient else LARGEST_OVER_EAGER
    bound = factor * largest_eager + FLOOR_ULPS * ulp
    assert largest <= bound, f"{what}: largest error {largest:.3g}, allowed {bound:.3g} (eager {largest_eager:.3g})"
    norm = float(truth.norm())
    l2, l2_eager = float((ours - truth).norm()), float((theirs - truth).norm())
    l2_factor = L2_OVER_EAGER * (2 if gradient else 1)
    # A relative L2 error of one unit in the last place is what a single rounding of each element gives.
    l2_bound = l2_factor * l2_eager + torch.finfo(actual.dtype).eps * norm
    assert l2 <= l2_bound, f"{what}: L2 error {l2:.3g}, allowed {l2_bound:.3g} (eager {l2_eager:.3g})"


# A layer by pairs of bfloat16, in L2. The direct form multiplies what eager multiplies; Winograd's forms round what
# they transform, and spread that over more of the output the wider they are.
PAIRS_L2_OVER_EAGER = {"direct": 1.1, "winograd2": 3.0, "winograd2x4": 5.0, "winograd4": 9.0, "tiles": 1.1}


def assert_pairs_within_their_row(
    actual: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor, algorithm: str, *, what: str = ""
) -> None:
    """The rule for a convolution by pairs of bfloat16: relative L2 error against eager PyTorch in bfloat16."""
    assert actual.shape == exact.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    assert actual.dtype == eager.dtype == torch.bfloat16, f"{what}: {actual.dtype}, {eager.dtype}"
    truth = exact.detach().double()
    l2, l2_eager = (float((result.detach().double() - truth).norm()) for result in (actual, eager))
    # One unit in the last place of each element, for images so small that eager happens to be exact.
    bound = PAIRS_L2_OVER_EAGER[algorithm] * l2_eager + torch.finfo(torch.bfloat16).eps / 4 * float(truth.norm())
    assert l2 <= bound, f"{what}: L2 error {l2:.3g}, allowed {bound:.3g} (eager {l2_eager:.3g})"


# A whole network in 16 bits against eager PyTorch in the same dtype: the plan sums and modulates in float32 and rounds
# where an image is stored, but Winograd's transforms spread the rounding of an input over more of the output.
PLAN_L2_OVER_EAGER = 1.5


def assert_plan_as_exact_as_eager(
    actual: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor, *, what: str = ""
) -> None:
    """The rule for a network's plan in 16 bits: relative L2 error against the module `.to(dtype)`, both on the CPU."""
    assert actual.shape == exact.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    assert actual.dtype == eager.dtype, f"{what}: dtype {actual.dtype}, expected {eager.dtype}"
    ours, theirs, truth = (tensor.detach().cpu().double() for tensor in (actual, eager, exact))
    l2, l2_eager = (float((result - truth).norm() / truth.norm()) for result in (ours, theirs))
    assert l2 <= PLAN_L2_OVER_EAGER * l2_eager, f"{what}: L2 error {l2:.3g} (eager {l2_eager:.3g})"


# Float32 against a few operations by hand in Python's float64, on numbers of about 1.
BY_HAND = 1e-5

# A smooth wave through the augmentation's filters, against the wave itself. Their phase is not quite linear, which is a
# shift by 0.05 pixels that turns with the image; a grid that is half an element off is out by 0.2 to 0.4.
TURNED_WAVE, MAGNIFIED_WAVE = 0.07, 0.02
