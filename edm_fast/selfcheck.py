"""Checks of an installation against denoisers that are known exactly: no network, no data, a minute at most.

Deterministic checks come first; noise comes last, because it would hide their failures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from edm_fast.ops.backends import extension
from edm_fast.ops.randn import randn
from edm_fast.reference.exact_denoisers import GaussianDenoiser
from edm_fast.reference.randn import randn as reference_randn
from edm_fast.samplers import ablation_sampler, sample

_STD = 0.5
_STEPS = (32, 64, 128, 256)

# solver, its options, the range of the order of convergence
_SOLVERS: tuple[tuple[str, dict[str, Any], float, float], ...] = (
    ("euler", {"solver": "euler"}, 0.9, 1.1),
    ("heun", {"solver": "heun"}, 1.9, 2.3),
    ("heun, alpha=0.75", {"solver": "heun", "alpha": 0.75}, 1.9, 2.3),
    ("heun, vp levels", {"solver": "heun", "discretization": "vp", "sigma_min": 0.002, "sigma_max": 80}, 1.9, 2.3),
    ("heun, ve levels", {"solver": "heun", "discretization": "ve", "sigma_min": 0.002, "sigma_max": 80}, 1.9, 2.3),
    ("euler, vp schedule and scaling", {"solver": "euler", "schedule": "vp", "scaling": "vp"}, 0.9, 1.3),
)


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    device: str
    measured: str
    wanted: str
    passed: bool


def run(devices: list[torch.device]) -> Iterator[Check]:
    """All checks on each device, in order; an exception inside a check is its failure."""
    for device in devices:
        yield _guarded("Philox words", device, "as published", _philox)
        yield _guarded("noise, bits against the reference", device, "equal", partial(_noise, device))
        for name, options, low, high in _SOLVERS:
            wanted = f"order {low} to {high}"
            yield _guarded(name, device, wanted, partial(_order, device, options, low, high))
        yield _guarded("same seed, any batch", device, "equal", partial(_batches, device))
        yield _guarded("marginal std under churn", device, "1 ± 0.005", partial(_churn, device))


def _guarded(name: str, device: torch.device, wanted: str, check: Callable[[], tuple[str, bool]]) -> Check:
    try:
        measured, passed = check()
    except Exception as error:  # a report of what is wrong must not stop at the first thing that is
        measured, passed = f"{type(error).__name__}: {error}", False
    return Check(name, str(device), measured, wanted, passed)


def _philox() -> tuple[str, bool]:
    words = extension().noise_words(0x299F31D0A4093822, 0x85A308D3243F6A88, 0x13198A2E, 0x03707344)
    text = " ".join(f"{word:08x}" for word in words)
    return text, text == "d16cfe09 94fdcceb 5001e420 24126ea1"


def _noise(device: torch.device) -> tuple[str, bool]:
    seeds = torch.tensor([0, 1, -1, 2**40])
    different = 0
    for draw in (0, 1, 77):
        here = randn((3, 33, 31), seeds, draw, device=device).cpu()
        different += int((here != reference_randn((3, 33, 31), seeds, draw)).sum())
    return "equal" if different == 0 else f"{different} elements differ", different == 0


def _order(device: torch.device, options: dict[str, Any], low: float, high: float) -> tuple[str, bool]:
    """Order of convergence to the exact solution x(σ) ∝ √(s² + σ²) of the ODE for N(0, s²)."""
    net = GaussianDenoiser(std=_STD)
    latents = randn((1, 8, 8), range(4), dtype=torch.float64, device=device)
    exact = latents * 80 * _STD / math.sqrt(_STD**2 + 80**2)
    errors = []
    for num_steps in _STEPS:
        samples = ablation_sampler(net, latents, num_steps=num_steps, **options)
        errors.append(float((samples - exact).abs().max() / exact.abs().max()))
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    measured = f"order {min(orders):.2f} to {max(orders):.2f}"
    return measured, all(low <= order <= high for order in orders)


def _batches(device: torch.device) -> tuple[str, bool]:
    net = GaussianDenoiser(std=_STD)
    whole = sample(net, range(13), num_steps=8, S_churn=5, device=device)
    split = sample(net, range(13), num_steps=8, S_churn=5, device=device, batch=4)
    different = int((whole != split).sum())
    return "equal" if different == 0 else f"{different} elements differ", different == 0


def _churn(device: torch.device) -> tuple[str, bool]:
    net = GaussianDenoiser(std=_STD, img_resolution=32)
    ratio = float(sample(net, range(64), num_steps=256, S_churn=40, device=device).std()) / _STD
    return f"{ratio:.4f}", abs(ratio - 1) <= 0.005
