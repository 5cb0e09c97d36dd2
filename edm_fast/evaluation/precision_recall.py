"""Precision and recall of generated images (Kynkäänniemi et al. 2019, arXiv 1904.06991)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class PrecisionRecall(NamedTuple):
    """Shares between 0 and 1: of the generated images that look real, and of the real ones that are covered."""

    precision: float
    recall: float


def precision_recall(real: Tensor, generated: Tensor, k: int = 3, block: int = 1024) -> PrecisionRecall:
    """Precision and recall by the balls that reach from each image to its k-th nearest neighbour.

    A set's manifold is the union of the closed balls around its images, each with the distance to the k-th nearest
    other image of the set as radius. Precision is the share of generated images in the manifold of the real ones,
    recall the share of real images in that of the generated ones. Every distance is computed, in float64 and as a sum
    of squared differences, so that equal images have the distance 0: the result is exact, and no choice of `block`
    changes it. The time grows with N², the memory with block².

    Args:
        real, generated: features [N, F] and [M, F] on one device.
        k: which neighbour; at least 1 and below N and M.
        block: images on either side whose distances are in memory at a time.

    Raises ValueError, naming the argument, for other shapes or numbers.
    """
    for name, features in (("real", real), ("generated", generated)):
        if features.ndim != 2:
            raise ValueError(f"{name}: shape is {tuple(features.shape)}; features [N, F] are needed")
        if not 1 <= k < len(features):
            raise ValueError(f"k: got {k}; it must be at least 1 and below the {len(features)} images of {name}")
    if real.shape[1] != generated.shape[1]:
        raise ValueError(f"generated: {generated.shape[1]} features; real has {real.shape[1]}")
    if block < 1:
        raise ValueError(f"block: got {block}; it must be at least 1")
    real, generated = real.double(), generated.double()
    precision = _inside(generated, real, _radii(real, k, block), block)
    recall = _inside(real, generated, _radii(generated, k, block), block)
    return PrecisionRecall(precision, recall)


def _radii(features: Tensor, k: int, block: int) -> Tensor:
    """[N] distances to the k-th nearest other row; a row's distance to itself is one more 0."""
    radii = []
    for rows in features.split(block):
        nearest = features.new_empty((len(rows), 0))
        for _, distances in _distances(rows, features, block):
            candidates = torch.cat([nearest, distances], dim=1)
            nearest = candidates.topk(min(k + 1, candidates.shape[1]), dim=1, largest=False).values
        radii.append(nearest[:, -1])
    return torch.cat(radii)


def _inside(points: Tensor, centres: Tensor, radii: Tensor, block: int) -> float:
    """The share of points that lie in at least one ball."""
    inside = 0
    for rows in points.split(block):
        found = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        for part, distances in _distances(rows, centres, block):
            found |= (distances <= radii[part]).any(dim=1)
        inside += int(found.sum())
    return inside / len(points)


def _distances(rows: Tensor, others: Tensor, block: int) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances [n, block] to one part of the others after another."""
    for start in range(0, len(others), block):
        part = slice(start, start + block)
        yield part, torch.cdist(rows, others[part], compute_mode="donot_use_mm_for_euclid_dist")
