"""Training on the CPU, each part against the plain PyTorch of edm_fast.reference: augmentations, noise and loss, steps.

Outputs are compared with a float64 result, of the same noise levels and noise, before anything is timed. A step is
everything from images to updated averages (forward, loss, backward, Adam, EMA), ours by `Trainer`; the baseline runs in
both memory layouts, and the faster one counts. Memory is kept in the process for all of them, see turns.py.

Run: python benchmarks/training_cpu.py [--only augment,loss,step] [--pairs 41]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness import Result, report
from ops_cpu import Case, named, run
from torch import Tensor, nn
from training_steps import step_cases
from turns import KEEP_MEMORY

from edm_fast.networks import EDMPrecond
from edm_fast.ops.randn import DOMAIN_TRAINING
from edm_fast.reference.augment import AugmentPipe as ReferencePipe
from edm_fast.reference.losses import EDMLoss as ReferenceLoss
from edm_fast.reference.preconditioning import EDMPrecond as ReferencePrecond
from edm_fast.reference.randn import randn
from edm_fast.training import AugmentPipe
from edm_fast.training.losses import EDMLoss

AUGMENT_TARGET = 3.0
LOSS_TARGET = 3.0
# The pipe of the training presets for CIFAR-10.
PRESET = {"p": 0.12, "xflip": 1e8, "yflip": 1, "scale": 1, "rotate_frac": 1, "aniso": 1, "translate_frac": 1}


def augment_cases() -> Iterator[Case]:
    """The whole pipe, drawing included."""
    shape = (64, 3, 32, 32)
    images = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    reference, ours = ReferencePipe(**PRESET), AugmentPipe(**PRESET)

    def seeded(pipe: ReferencePipe, images: Tensor) -> Callable[[], Tensor]:
        def result() -> Tensor:
            torch.manual_seed(1)
            return pipe(images)[0]

        return result

    name = f"augmentation pipe {named(shape, torch.float32)}"
    exact = seeded(reference, images.double())
    baseline, fused = seeded(reference, images), seeded(ours, images)
    yield Case(name, {"reference": baseline}, fused, fused, exact, torch.float32, AUGMENT_TARGET)


class Constant(nn.Module):
    """Stands for the network: F is a parameter, which takes the gradient."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None, **_: Any) -> Tensor:
        return self.output


def loss_cases() -> Iterator[Case]:
    """From images to the gradient of the network's output: all of a step's work around the network."""
    for shape in ((16, 3, 32, 32), (64, 3, 32, 32), (512, 3, 32, 32), (64, 3, 64, 64)):
        yield loss_case(shape)


def loss_case(shape: tuple[int, ...]) -> Case:
    count, _, resolution, _ = shape
    images, output, seeds = torch.randn(shape), torch.randn(shape), torch.arange(count)
    form = {"model_type": "SongUNet", "model_channels": 16, "channel_mult": [1], "num_blocks": 1}

    def replaced(net: Any, layout: torch.memory_format) -> tuple[Any, Tensor]:
        net.model = Constant(output.clone(memory_format=layout))
        return net, images.contiguous(memory_format=layout)

    def gradient(net: Any, loss: Tensor) -> Tensor:
        net.model.output.grad = None
        loss.backward()
        return net.model.output.grad

    def baseline(layout: torch.memory_format) -> Callable[[], Tensor]:
        net, y = replaced(ReferencePrecond(resolution, 3, **form), layout)
        loss = ReferenceLoss()
        return lambda: gradient(net, loss(net, y).sum() / count)

    net, y = replaced(EDMPrecond(resolution, 3, **form), torch.channels_last)

    def ours() -> Tensor:
        return gradient(net, EDMLoss().per_sample(net, y, seeds=seeds).loss.sum() / count)

    def result() -> Tensor:
        made = EDMLoss().per_sample(net, y, seeds=seeds)
        return torch.cat([made.loss.detach() / images[0].numel(), ours().flatten()])

    def expected() -> Tensor:
        sigma = EDMLoss().per_sample(net, y, seeds=seeds).sigma.double().reshape(-1, 1, 1, 1)
        noise = randn(shape[1:], seeds, 0, DOMAIN_TRAINING).double()
        F = output.double().requires_grad_()
        c_skip, c_out, _, _ = net.coefficients(sigma)
        denoised = c_skip * (images.double() + sigma * noise) + c_out * F
        losses = (ReferenceLoss().weight(sigma) * (denoised - images.double()) ** 2).sum(dim=[1, 2, 3])
        (losses.sum() / count).backward()
        return torch.cat([losses.detach() / images[0].numel(), F.grad.contiguous().flatten()])

    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    baselines = {f"reference, {name}": baseline(layout) for name, layout in layouts.items()}
    name = f"noise_augment and denoising_loss {named(shape, torch.float32)}"
    return Case(name, baselines, ours, result, expected, torch.float32, LOSS_TARGET)


GROUPS: dict[str, Callable[[], Iterator[Case]]] = {"augment": augment_cases, "loss": loss_cases, "step": step_cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=41, help="pairs per case (default: %(default)s)")
    parser.add_argument("--only", metavar="GROUPS", help=f"of {', '.join(GROUPS)}; nothing is kept")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else [*GROUPS]
    for name in chosen:
        if name not in GROUPS:
            parser.error(f"--only: got {name!r}; it is one of {', '.join(GROUPS)}")
    results: list[Result] = []
    extra: dict[str, dict[str, Any]] = {}
    for name in chosen:
        for case in GROUPS[name]():
            result, extra[case.name] = run(case, min(options.pairs, case.most_pairs))
            results.append(result)
            print(f"{result.name}: {result.ratio:.2f}", flush=True)
    if not options.only:
        report("Training on the CPU", results, "training_cpu", extra)


if __name__ == "__main__":
    if not KEEP_MEMORY.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    torch.manual_seed(0)
    main()
