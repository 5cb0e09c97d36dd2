"""k-diffusion's and diffusers' own samplers around the same network, for the cases of samplers."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import edm_fast
from edm_fast.bench import Entry, Peer
from edm_fast.bench.plain import plain_digits
from edm_fast.bench.samplers import (
    BATCHES,
    OVERHEAD,
    SOLVERS,
    STEPS,
    digits_latents,
    overhead_name,
    overhead_net,
    sampling_name,
)

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0


def k_diffusion() -> Any | None:
    """Its sampling module, if it is installed and imports."""
    from peer_k_diffusion import sampling_module

    try:
        return sampling_module()
    except pytest.skip.Exception:
        return None


def k_diffusion_peer(net: Any, latents: Tensor, labels: Tensor | None, solver: str) -> dict[str, Peer]:
    module = k_diffusion()
    if module is None:
        return {}
    sigmas = module.get_sigmas_karras(STEPS, SIGMA_MIN, SIGMA_MAX, RHO)
    sampler = getattr(module, f"sample_{solver}")
    x, extra = latents * SIGMA_MAX, {} if labels is None else {"class_labels": labels}

    def run() -> Tensor:
        return sampler(net, x, sigmas, extra_args=extra, disable=True)

    return {f"k-diffusion sample_{solver}": Peer(run, run)}


def diffusers_peer(net: Any, latents: Tensor, labels: Tensor | None) -> dict[str, Peer]:
    """EDMEulerScheduler in the loop of every pipeline, around F."""
    if importlib.util.find_spec("diffusers") is None:
        return {}
    from diffusers import EDMEulerScheduler

    options = {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX, "rho": RHO, "sigma_data": net.sigma_data}

    def run() -> Tensor:
        scheduler = EDMEulerScheduler(**options)
        scheduler.set_timesteps(STEPS)
        sample = latents * SIGMA_MAX
        for t in scheduler.timesteps:
            F = net.model(scheduler.scale_model_input(sample, t), t.reshape(1), labels)
            sample = scheduler.step(F, t, sample).prev_sample
        return sample

    return {"diffusers EDMEulerScheduler": Peer(run, run)}


def sampler_peers(entry: Entry) -> dict[str, Peer]:
    """Further peers of an entry; none for what is not a sampler, and for churn, whose noise each draws by itself."""
    made = {overhead_name(*size, 0): partial(overhead, *size) for size in OVERHEAD}
    made |= {sampling_name(*run): partial(digits, *run) for run in itertools.product(BATCHES, SOLVERS)}
    return made[entry.name]() if entry.name in made else {}


def overhead(batch: int, resolution: int) -> dict[str, Peer]:
    latents = edm_fast.randn((3, resolution, resolution), range(batch))
    return k_diffusion_peer(overhead_net(batch, resolution), latents, None, "heun")


def digits(batch: int, solver: str) -> dict[str, Peer]:
    latents, labels = digits_latents(batch)
    net = plain_digits()
    peers = k_diffusion_peer(net, latents, labels, solver)
    return {**peers, **(diffusers_peer(net, latents, labels) if solver == "euler" else {})}
