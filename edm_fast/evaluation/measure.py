"""From images to numbers: features, their Gaussian, and the comparison with a reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edm_fast.evaluation.features import Extractor, device_of, features_of
from edm_fast.evaluation.frechet import frechet_distance
from edm_fast.evaluation.gaussian import Gaussian, RunningGaussian
from edm_fast.evaluation.precision_recall import precision_recall
from edm_fast.evaluation.sources import ImageSource


@dataclass(frozen=True, eq=False)
class Measurement:
    """What is known of a set of images.

    `images` is their number, None if only a statistics file is there; `features` [N, F] only if they were kept.
    """

    gaussian: Gaussian
    images: int | None = None
    features: Tensor | None = None


@dataclass(frozen=True)
class Evaluation:
    """How far images are from a reference.

    `precision` and `recall` are None if they were not asked for; `warnings` say what makes the numbers doubtful.
    """

    frechet_distance: float
    features: int
    images: int | None
    reference_images: int | None
    precision: float | None = None
    recall: float | None = None
    warnings: list[str] = field(default_factory=list)


def measure(
    source: ImageSource,
    extractor: Extractor,
    *,
    batch: int = 64,
    keep_features: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Measurement:
    """The Gaussian of the features of all images, which are made or read `batch` at a time.

    Args:
        extractor: takes uint8 [n, C, H, W] from 0 to 255, for a module where its parameters lie, and returns [n, F].
        keep_features: keep them all, on their device, for precision and recall; otherwise none outlives its batch.
        progress: called with (images done, images in all) after each batch.

    Raises what the source and the extractor raise; ValueError for fewer than two images.
    """
    fit, kept = RunningGaussian(), []
    device = device_of(extractor)
    for images in source.batches(batch):
        features = features_of(extractor, images.to(device), first=fit.count)
        fit.add(features)
        if keep_features:
            kept.append(features)
        if progress is not None:
            progress(fit.count, len(source))
    return Measurement(fit.result(), fit.count, torch.cat(kept) if keep_features else None)


def compare(images: Measurement, reference: Measurement, neighbours: int | None = None) -> Evaluation:
    """The Fréchet distance of the two Gaussians and, with `neighbours`, precision and recall by that many.

    ValueError if the features differ in number, or if they were not kept and `neighbours` needs them.
    """
    distance = frechet_distance(images.gaussian, reference.gaussian)
    count = len(reference.gaussian.mu)
    warnings = [
        f"{known.images} {name} are too few for a covariance of {count} features, which needs at least {count + 1}: "
        "the distance says little"
        for name, known in (("images", images), ("reference images", reference))
        if known.images is not None and known.images <= count
    ]
    precision = recall = None
    if neighbours is not None:
        if images.features is None or reference.features is None:
            raise ValueError("neighbours: precision and recall need the features of the images and of the reference")
        precision, recall = precision_recall(reference.features, images.features, neighbours)
    return Evaluation(distance, count, images.images, reference.images, precision, recall, warnings)
