"""The Fréchet distance of two Gaussians (Dowson and Landau 1982; of Inception features: FID, Heusel et al. 2017)."""

from __future__ import annotations

import numpy as np

from edm_fast.evaluation.gaussian import ROUNDING, Gaussian


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """d² = |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2(Σ_a Σ_b)^½), in float64; never below 0.

    With Σ = R Rᵀ, the trace of the root is the sum of the singular values of R_aᵀ R_b: no matrix root, no complex
    numbers and nothing added to the diagonals, so covariances of any rank are right. Of an eigenvalue of Σ that is
    below the rounding of the decomposition, F ε times the largest, nothing is known; it counts as 0.

    Raises ValueError if the numbers of features differ, or if a Σ has a negative eigenvalue that rounding to float32
    does not explain.
    """
    if a.mu.shape != b.mu.shape:
        raise ValueError(f"b: statistics of {len(b.mu)} features; a has {len(a.mu)}. One extractor must have made both")
    cross = np.linalg.svd(_root("a", a.sigma).T @ _root("b", b.sigma), compute_uv=False).sum()
    gap = a.mu - b.mu
    return max(0.0, float(gap @ gap + np.trace(a.sigma) + np.trace(b.sigma) - 2 * cross))


def _root(name: str, sigma: np.ndarray) -> np.ndarray:
    """R [F, rank] with R Rᵀ = sigma."""
    values, vectors = np.linalg.eigh((sigma + sigma.T) / 2)
    largest = np.abs(values).max()
    if values[0] < -ROUNDING * largest:
        raise ValueError(f"{name}: sigma has the eigenvalue {values[0]:.3g}, so it is not a covariance")
    known = values > len(values) * np.finfo(np.float64).eps * largest
    return vectors[:, known] * np.sqrt(values[known])
