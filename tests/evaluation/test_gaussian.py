"""Means and covariances in one pass, and what is refused as such."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tolerance import STATISTICS_FLOAT64

from edm_fast.evaluation import Gaussian, RunningGaussian


def fit(rows, *sizes):
    running = RunningGaussian()
    for part in rows.split(list(sizes) or len(rows)):
        running.add(part)
    assert running.count == len(rows)
    return running.result()


@pytest.mark.parametrize("sizes", [(50,), (1,) * 50, (7, 40, 3), (0, 50, 0)])
def test_batches_give_what_numpy_gives_of_all_rows(sizes):
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 1
    found, expected = fit(rows, *sizes), np.cov(rows.numpy(), rowvar=False)
    assert np.abs(found.sigma - expected).max() <= STATISTICS_FLOAT64 * np.trace(expected)
    assert np.abs(found.mu - rows.numpy().mean(axis=0)).max() <= STATISTICS_FLOAT64 * np.trace(expected)


def test_a_mean_far_from_zero_costs_no_digits():
    """Sums of squares would keep none of a deviation of 1 at 2²⁷."""
    rows = torch.tensor([[0.0], [1.0], [2.0]] * 4, dtype=torch.float64)
    assert fit(rows + 2**27, 3, 6, 3).sigma == pytest.approx(fit(rows).sigma, rel=STATISTICS_FLOAT64)


def test_half_precision_features_are_summed_in_float64():
    rows = torch.tensor([[2048.0], [2049.0]] * 300).half()
    assert rows[1] == 2048
    rows[1::2] = 2050
    assert fit(rows, 400, 200).mu == [2049.0]


def test_no_row_is_kept():
    running = RunningGaussian()
    for _ in range(20):
        running.add(torch.randn(1000, 3))
    held = [value for value in vars(running).values() if isinstance(value, np.ndarray)]
    assert {array.shape for array in held} == {(3,), (3, 3)}


def test_a_result_does_not_change_when_rows_follow():
    running = RunningGaussian()
    running.add(torch.eye(3))
    before = running.result()
    mu = before.mu.copy()
    running.add(torch.ones(5, 3))
    assert np.array_equal(before.mu, mu)


def test_one_image_has_no_covariance():
    with pytest.raises(ValueError, match="images: got 1; a covariance needs at least 2"):
        fit(torch.zeros(1, 4))


def test_rows_of_another_width_are_named():
    running = RunningGaussian()
    running.add(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="features: 5 columns; the rows before had 4"):
        running.add(torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("mu", "sigma", "message"),
    [
        (np.zeros((2, 1)), np.eye(2), r"mu: shape is \(2, 1\); \[F\]"),
        (np.zeros(0), np.zeros((0, 0)), "mu: shape is"),
        (np.zeros(2), np.eye(3), r"sigma: shape is \(3, 3\); mu has 2 features"),
        (np.zeros(2), np.ones((2, 3)), r"sigma: shape is \(2, 3\)"),
        (np.zeros(2), np.zeros(4), r"sigma: shape is \(4,\); \[F, F\]"),
        (np.array([0, np.nan]), np.eye(2), "mu: holds NaN"),
        (np.zeros(2), np.diag([1, np.inf]), "sigma: holds NaN or infinity"),
        (np.zeros(2, dtype=int), np.eye(2), "mu: dtype is int64"),
        (np.zeros(2), np.eye(2, dtype=complex), "sigma: dtype is complex128"),
        (np.zeros(2), np.array([[1, 0.5], [0.4, 1]]), "sigma: is not symmetric"),
    ],
)
def test_what_is_no_gaussian_is_named(mu, sigma, message):
    with pytest.raises(ValueError, match=message):
        Gaussian(mu, sigma)
