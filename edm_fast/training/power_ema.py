"""Power-function averages of a network's weights (Karras et al. 2023, arXiv 2312.02696, section 3.1).

After t images the average is ∫ p(τ) θ(τ) dτ over [0, t] with the profile p(τ) = (γ + 1)·τ^γ / t^(γ+1), whose standard
deviation is σ_rel·t. Its shape does not depend on t, so that a width is a fraction of the run and no start-up is to be
corrected; averages of two widths, stored now and then, give those of other widths afterwards (`ema_reconstruction`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Generic

import numpy as np

from edm_fast.training.ema import Net, average_in

# A thousandth of the run, and the width of the uniform average, γ = 0. Wider profiles weigh the start the most.
MIN_SIGMA_REL = 1e-3
MAX_SIGMA_REL = 12**-0.5


def check_sigma_rel(sigma_rel: float) -> None:
    """ValueError unless 0.001 ≤ σ_rel < 1/√12 ≈ 0.2887."""
    if not MIN_SIGMA_REL <= sigma_rel < MAX_SIGMA_REL:
        raise ValueError(
            f"sigma_rel must be at least {MIN_SIGMA_REL:g} and less than {MAX_SIGMA_REL:.4f}, but it is {sigma_rel}"
        )


def gamma_of(sigma_rel: float) -> float:
    """The exponent γ > 0 of the profile of relative width σ_rel = √((γ + 1)/(γ + 3))/(γ + 2).

    The largest real root of γ³ + 7γ² + (16 − σ_rel⁻²)γ + 12 − σ_rel⁻². Raises ValueError as of `check_sigma_rel`.
    """
    check_sigma_rel(sigma_rel)
    inverse = sigma_rel**-2
    # The coefficients change sign once: one root is positive.
    return float(np.max(np.roots([1, 7, 16 - inverse, 12 - inverse]).real))


def power_decay(batch: int, images_seen: int, gamma: float) -> float:
    """β = (1 − Δ/t)^(γ+1) of a step of Δ = batch images after which t = images_seen + batch are seen.

    The product of the later β gives the weights of each step the integral of the profile over it, exactly, whatever
    the batches; the first β is 0, so that the initial weights do not count.
    """
    return math.pow(images_seen / (images_seen + batch), gamma + 1)


class PowerEMA(Generic[Net]):
    """Averages of several relative widths: `nets`, copies of a network in eval mode, one for each of `sigma_rels`.

    Parameters are averaged, buffers are copied. Raises ValueError for a width out of range, for none, and for one that
    comes twice.
    """

    def __init__(self, net: Net, sigma_rels: Sequence[float] = (0.05, 0.10)) -> None:
        if not sigma_rels or len(set(sigma_rels)) < len(sigma_rels):
            raise ValueError(f"sigma_rels must be one width or more, all different, but they are {list(sigma_rels)}")
        self.sigma_rels = tuple(float(sigma_rel) for sigma_rel in sigma_rels)
        self.gammas = tuple(gamma_of(sigma_rel) for sigma_rel in self.sigma_rels)
        self.nets: list[Net] = [copy.deepcopy(net).eval().requires_grad_(False) for _ in self.sigma_rels]

    def update(self, net: Net, images_seen: int, batch: int) -> None:
        """Take in the weights that `net` has after a step of `batch` images; `images_seen` counts those before it."""
        for average, gamma in zip(self.nets, self.gammas, strict=True):
            average_in(average, net, power_decay(batch, images_seen, gamma))
