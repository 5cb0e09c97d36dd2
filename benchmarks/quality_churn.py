"""Fréchet distance against S_churn, on the shipped model and the pixels of all digits.

Sets of seeds are the same for every S_churn, so that what one set of images has more of a distance than another counts
for all: differences are known better than distances. A set of as many real digits, drawn with repetition, says what
distance such sets have that are drawn from the reference itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

import edm_fast
from edm_fast.evaluation import (
    Measurement,
    SampledImages,
    TensorImages,
    compare,
    digits_features,
    digits_images,
    measure,
)
from edm_fast.samplers import edm_table

S_CHURN = (0.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
BATCH = 250


def churn_figures(
    steps: tuple[int, ...],
    images: int,
    sets: int,
    values: tuple[float, ...] = S_CHURN,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """What the file has under "churn": for each number of steps and S_churn the distance of each set of seeds.

    A value above num_steps (√2 - 1) counts as that, and is not measured twice.
    """
    net = edm_fast.prepare(edm_fast.load())
    reference = measure(digits_images(), digits_features)
    rows: list[dict[str, Any]] = []
    for count in steps:
        known: dict[bytes, list[float]] = {}
        for value in values:
            options = {"num_steps": count, "S_churn": value}
            table = edm_table(net, **options)
            same = table.updates.tobytes()
            if same not in known:
                known[same] = [
                    distance(net, range(images * k, images * (k + 1)), options, reference) for k in range(sets)
                ]
            rows.append(
                {
                    "steps": count,
                    "evaluations": table.evaluations,
                    "S_churn": value,
                    "cut_at": round(count * (math.sqrt(2) - 1), 3),
                    "distances": known[same],
                }
            )
            say(f"churn: {count} steps, S_churn {value:g}: " + ", ".join(f"{each:.3f}" for each in known[same]))
    return {
        "images": images,
        "sets": sets,
        "seeds": f"0 to {images * sets - 1}, a set after the other",
        "features": "pixels, on the scale 0 to 16 (edm_fast.evaluation.digits_features)",
        "reference_images": reference.images,
        "real_distances": [real_distance(images, seed, reference) for seed in range(sets)],
        "rows": rows,
    }


def distance(net: Any, seeds: range, options: dict[str, Any], reference: Measurement) -> float:
    """Of the images of the seeds, each of a random class, from the reference."""
    source = SampledImages(net, seeds, **options)
    return round(compare(measure(source, digits_features, batch=BATCH), reference).frechet_distance, 4)


def real_distance(images: int, seed: int, reference: Measurement) -> float:
    """Of as many real digits, drawn with repetition."""
    real = torch.cat(list(digits_images().batches(BATCH)))
    drawn = torch.randint(len(real), [images], generator=torch.Generator().manual_seed(seed))
    return round(compare(measure(TensorImages(real[drawn]), digits_features), reference).frechet_distance, 4)
