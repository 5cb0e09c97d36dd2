"""Gaussians of features, and their fit in one pass over batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

# Statistics that once were rounded to float32 are still symmetric and positive to this part of their largest entry.
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean `mu` [F] and covariance `sigma` [F, F], float64.

    ValueError for another shape, an integer or other type, NaN, infinity, or a `sigma` that is not symmetric.
    """

    mu: np.ndarray
    sigma: np.ndarray

    def __post_init__(self) -> None:
        for name, wanted in (("mu", "[F]"), ("sigma", "[F, F]")):
            array = getattr(self, name)
            if array.dtype.kind != "f":
                raise ValueError(f"{name}: dtype is {array.dtype}; floating-point numbers are needed")
            if array.ndim != len(wanted.split(",")) or array.size == 0:
                raise ValueError(f"{name}: shape is {array.shape}; {wanted} with at least one feature is needed")
            if not np.isfinite(array).all():
                raise ValueError(f"{name}: holds NaN or infinity")
            object.__setattr__(self, name, array.astype(np.float64))
        count = len(self.mu)
        if self.sigma.shape != (count, count):
            raise ValueError(f"sigma: shape is {self.sigma.shape}; mu has {count} features, so [{count}, {count}]")
        if np.abs(self.sigma - self.sigma.T).max() > ROUNDING * np.abs(self.sigma).max():
            raise ValueError("sigma: is not symmetric, so it is not a covariance")


class RunningGaussian:
    """The mean and the unbiased covariance (divisor N − 1, as numpy.cov) of rows that come in batches.

    Batches of n rows with mean m and scatter S about it are merged into the N before by

        δ = m − mean,  mean += δ n/(N + n),  scatter += S + δδᵀ N n/(N + n)

    in float64: no sum of squares whose digits cancel, and no row is kept.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))

    def add(self, features: torch.Tensor) -> None:
        """Take in rows [n, F]; ValueError if their width is not that of the rows before."""
        rows = features.detach().to("cpu", torch.float64).numpy()
        if self.count == 0:
            self._mean = np.zeros(rows.shape[1])
            self._scatter = np.zeros((rows.shape[1], rows.shape[1]))
        if rows.shape[1] != len(self._mean):
            raise ValueError(f"features: {rows.shape[1]} columns; the rows before had {len(self._mean)}")
        if len(rows) == 0:
            return
        mean = rows.mean(axis=0)
        centred = rows - mean
        gap = mean - self._mean
        total = self.count + len(rows)
        self._scatter += centred.T @ centred + np.outer(gap, gap) * (self.count * len(rows) / total)
        self._mean += gap * (len(rows) / total)
        self.count = total

    def result(self) -> Gaussian:
        """ValueError for fewer than two rows, which have no covariance."""
        if self.count < 2:
            raise ValueError(f"images: got {self.count}; a covariance needs at least 2")
        return Gaussian(self._mean, self._scatter / (self.count - 1))
