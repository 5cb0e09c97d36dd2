"""The Fréchet distance against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from tolerance import STATISTICS_FLOAT64

from edm_fast.evaluation import Gaussian, frechet_distance


def rotation(count, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(count, count)))[0]


def covariance(count, rank, seed):
    factor = np.random.default_rng(seed).normal(size=(count, rank))
    return factor @ factor.T


def distance(sigma_a, sigma_b, mu_a=0.0, mu_b=0.0):
    count = len(sigma_a)
    return frechet_distance(
        Gaussian(np.zeros(count) + mu_a, np.asarray(sigma_a)), Gaussian(np.zeros(count) + mu_b, np.asarray(sigma_b))
    )


def close(found, expected, *sigmas):
    return abs(found - expected) <= STATISTICS_FLOAT64 * sum(map(np.trace, sigmas))


@pytest.mark.parametrize("rank", [1, 5, 40])
def test_equal_gaussians_have_the_distance_zero_at_any_rank(rank):
    sigma = covariance(40, rank, seed=1)
    found = distance(sigma, sigma)
    assert found >= 0
    assert close(found, 0, sigma)


def test_a_shifted_mean_gives_its_squared_length():
    sigma = covariance(4, 4, seed=2)
    assert close(distance(sigma, sigma, mu_b=np.array([1.0, -2.0, 0.5, 0.0])), 5.25, sigma)


def test_a_scaled_covariance():
    """tr(S + c²S − 2cS) = (c − 1)² tr S."""
    sigma = covariance(7, 7, seed=3)
    assert close(distance(sigma, 9 * sigma), 4 * np.trace(sigma), sigma)


def test_commuting_covariances():
    """In their common basis it is |√λ − √λ'|², whatever the basis."""
    basis, a, b = rotation(4), np.array([1.0, 4, 9, 16]), np.array([4.0, 1, 25, 0.25])
    found = distance((basis * a) @ basis.T, (basis * b) @ basis.T)
    assert close(found, ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), np.diag(a), np.diag(b))


def test_covariances_without_full_rank():
    """Ranks 2 and 2 with one direction in common, among 60: 5 + 25 − 2·√(1·9), where a root of the product is lost."""
    basis, a, b = rotation(60), np.zeros(60), np.zeros(60)
    a[:2], b[[0, 2]] = (1, 4), (9, 16)
    found = distance((basis * a) @ basis.T, (basis * b) @ basis.T)
    assert close(found, 24, np.diag(a), np.diag(b))


def test_a_point_has_the_whole_variance_as_distance():
    sigma = covariance(5, 5, seed=4)
    assert close(distance(np.zeros((5, 5)), sigma), np.trace(sigma), sigma)
    assert distance(np.zeros((5, 5)), np.zeros((5, 5))) == 0


@pytest.mark.parametrize("seed", range(5))
def test_any_covariances_by_the_matrix_root_and_both_ways(seed):
    a, b = covariance(20, 30, seed), covariance(20, 25, seed + 100)
    expected = np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real) + 20 * 0.25
    assert close(distance(a, b, mu_b=0.5), expected, a, b)
    assert close(distance(b, a, mu_a=0.5), distance(a, b, mu_b=0.5), a, b)


def test_it_agrees_in_one_dimension():
    """(μ − μ')² + (s − s')²."""
    assert distance([[4.0]], [[9.0]], 1.0, 3.0) == pytest.approx(5, rel=STATISTICS_FLOAT64)


def test_other_numbers_of_features_are_named():
    with pytest.raises(ValueError, match="b: statistics of 3 features; a has 2"):
        frechet_distance(Gaussian(np.zeros(2), np.eye(2)), Gaussian(np.zeros(3), np.eye(3)))


def test_a_matrix_that_is_no_covariance_is_named():
    with pytest.raises(ValueError, match="b: sigma has the eigenvalue -1"):
        distance(np.eye(2), np.diag([2.0, -1.0]))


def test_statistics_that_were_rounded_to_float32_pass():
    sigma = covariance(50, 10, seed=5)
    rounded = sigma.astype(np.float32).astype(np.float64)
    assert np.linalg.eigvalsh(rounded)[0] < 0
    assert distance(sigma, rounded) <= 1e-3 * np.trace(sigma)
