"""Parts of a training step on the CPU, each against the plain PyTorch of edm_fast.reference.

What is drawn is the same for both, and outputs are compared with a float64 result before anything is timed.

Run: python benchmarks/training_cpu.py [--pairs 41]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness import Result, report
from ops_cpu import Case, named, run
from torch import Tensor

from edm_fast.reference.augment import AugmentPipe as ReferencePipe
from edm_fast.training import AugmentPipe

AUGMENT_TARGET = 3.0
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


GROUPS: dict[str, Callable[[], Iterator[Case]]] = {"augment": augment_cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=41, help="pairs per case (default: %(default)s)")
    options = parser.parse_args()
    results: list[Result] = []
    extra: dict[str, dict[str, Any]] = {}
    for cases in GROUPS.values():
        for case in cases():
            result, extra[case.name] = run(case, options.pairs)
            results.append(result)
    report("Training on the CPU", results, "training_cpu", extra)


if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.no_grad():
        main()
