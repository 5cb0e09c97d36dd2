"""Time of a sampler step without the network: everything between two evaluations, per step, ours against eager PyTorch.

The network costs nothing: it returns a tensor made beforehand. The baseline is the paper's form in eager PyTorch with
float64 state and the preconditioning in the module, as the public code runs it; with churn, its noise comes from one
torch.Generator per image, which is what makes seeds independent of the batch there. Outputs are compared before
anything is timed.

Run: python benchmarks/sampler_overhead.py
"""

from __future__ import annotations

import argparse

import torch
from harness import Result, compare, report
from torch import nn

import edm_fast
from edm_fast.networks import EDMPrecond
from edm_fast.reference import samplers as reference

STEPS = 18


class Constant(nn.Module):
    """Stands for the network: the same F for every input."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x, noise_labels, class_labels=None, **_):
        return self.output[: x.shape[0]]


def free_net(batch: int, resolution: int) -> EDMPrecond:
    net = EDMPrecond(resolution, 3, model_type="SongUNet", model_channels=16, channel_mult=[1], num_blocks=1)
    net.model = Constant(torch.randn([batch, 3, resolution, resolution]))
    return net.eval()


def case(batch: int, resolution: int, S_churn: float, pairs: int) -> Result:
    net, seeds = free_net(batch, resolution), range(batch)
    shape = (3, resolution, resolution)
    options = {"num_steps": STEPS, "S_churn": S_churn}

    def philox_reference() -> torch.Tensor:
        draws = iter(range(1, STEPS + 1))
        latents = edm_fast.randn(shape, seeds)
        noise = lambda x: edm_fast.randn(shape, seeds, next(draws), dtype=x.dtype)  # noqa: E731
        return reference.edm_sampler(net, latents, randn_like=noise, **options)

    def baseline() -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        latents = torch.stack([torch.randn(shape, generator=generator) for generator in generators])

        def randn_like(x):
            if S_churn == 0:
                return torch.zeros_like(x)  # kinder than the public code, which draws here too
            return torch.stack([torch.randn(shape, dtype=x.dtype, generator=generator) for generator in generators])

        return reference.edm_sampler(net, latents, randn_like=randn_like, **options)

    def ours() -> torch.Tensor:
        return edm_fast.sample(net, seeds, batch=batch, **options)

    difference = (philox_reference() - ours()).abs().max() / ours().abs().max()
    assert difference < 1e-5, f"outputs differ by {difference}"
    result = compare(f"batch {batch}, 3x{resolution}x{resolution}, S_churn={S_churn:g}", baseline, ours, pairs)
    return Result(result.name, result.baseline_s / STEPS, result.ours_s / STEPS, *list(vars(result).values())[3:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=41, help="pairs per case (default: %(default)s)")
    options = parser.parse_args()
    with torch.no_grad():
        cases = [(1, 32), (8, 32), (64, 32), (64, 64)]
        results = [case(batch, size, S_churn, options.pairs) for S_churn in (0, 40) for batch, size in cases]
    report("Sampler step without the network", results, "sampler_overhead")
