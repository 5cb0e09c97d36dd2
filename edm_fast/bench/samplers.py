"""Samplers: all of a step but the network, and whole runs of the shipped model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import edm_fast
from edm_fast.bench.free_network import free_net
from edm_fast.bench.plain import plain_digits
from edm_fast.bench.registry import Entry
from edm_fast.bench.turns import Case, Peer
from edm_fast.networks import EDMPrecond
from edm_fast.reference import samplers as reference

STEPS = 18
BATCHES, SOLVERS = (1, 64), ("heun", "euler")
OVERHEAD = ((1, 32), (8, 32), (64, 32), (64, 64))
# Of a run in float32, whose small differences many steps enlarge.
BOUND = 1e-3


def entries() -> Iterator[Entry]:
    for S_churn in (0, 40):
        for batch, resolution in OVERHEAD:
            name = overhead_name(batch, resolution, S_churn)
            build = partial(overhead_case, batch, resolution, S_churn)
            yield Entry("sampler overhead", name, build, (batch, resolution) == (8, 32))
    for batch in BATCHES:
        for solver in SOLVERS:
            name = sampling_name(batch, solver)
            yield Entry("sampling", name, partial(sampling_case, batch, solver), (batch, solver) == (1, "heun"))


def overhead_name(batch: int, resolution: int, S_churn: float) -> str:
    return f"a step of {batch} × 3×{resolution}×{resolution}, S_churn={S_churn:g}"


def sampling_name(batch: int, solver: str) -> str:
    return f"digits (shipped), {batch}, {solver}, {STEPS} steps"


def overhead_net(batch: int, resolution: int) -> EDMPrecond:
    generator = torch.Generator().manual_seed(1)
    return free_net(EDMPrecond, torch.randn([batch, 3, resolution, resolution], generator=generator))


def overhead_case(batch: int, resolution: int, S_churn: float) -> Case:
    """The peer is the paper's form in eager PyTorch: float64 state, preconditioning in the module.

    With churn its noise comes from one torch.Generator per image, which is what makes seeds independent of the batch
    there; without, it draws none, which is kinder than the public code.
    """
    net, seeds, shape = overhead_net(batch, resolution), range(batch), (3, resolution, resolution)

    def run(latents: Tensor, randn_like: Callable[[Tensor], Tensor]) -> Tensor:
        return reference.edm_sampler(net, latents, randn_like=randn_like, num_steps=STEPS, S_churn=S_churn)

    def by_our_noise() -> Tensor:
        draws = iter(range(1, STEPS + 1))
        noise = lambda x: edm_fast.randn(shape, seeds, next(draws), dtype=x.dtype)  # noqa: E731
        return run(edm_fast.randn(shape, seeds), noise)

    def eager() -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        latents = torch.stack([torch.randn(shape, generator=generator) for generator in generators])

        def randn_like(x: Tensor) -> Tensor:
            if S_churn == 0:
                return torch.zeros_like(x)
            return torch.stack([torch.randn(shape, dtype=x.dtype, generator=generator) for generator in generators])

        return run(latents, randn_like)

    def ours() -> Tensor:
        return edm_fast.sample(net, seeds, batch=batch, num_steps=STEPS, S_churn=S_churn)

    return Case(ours, ours, by_our_noise, BOUND, {"reference": Peer(eager, by_our_noise)}, parts=STEPS)


def digits_latents(batch: int) -> tuple[Tensor, Tensor]:
    """(latents of the seeds 0 … N-1, rows of labels) of the shipped model."""
    labels = torch.nn.functional.one_hot(torch.arange(batch) % 10, 10).float()
    return edm_fast.randn((1, 8, 8), range(batch)), labels


def sampling_case(batch: int, solver: str) -> Case:
    """From seeds to images by the shipped model, over the reference sampler around the eager network."""
    net, plain = edm_fast.load().eval(), plain_digits()
    latents, labels = digits_latents(batch)

    def eager() -> Tensor:
        if solver == "euler":
            return reference.ablation_sampler(plain, latents, labels, num_steps=STEPS, solver="euler")
        return reference.edm_sampler(plain, latents, labels, num_steps=STEPS)

    def ours() -> Tensor:
        return edm_fast.sample(net, range(batch), labels, num_steps=STEPS, solver=solver, batch=batch)

    return Case(ours, ours, eager, BOUND, {"reference, eager": Peer(eager, eager)}, most_rounds=5)
