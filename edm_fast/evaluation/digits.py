"""Features of 8×8 digits: what a support vector machine thinks of each pair of digits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edm_fast import images as image_bytes
from edm_fast.evaluation.sources import TensorImages
from edm_fast.training.data import NUM_CLASSES, RESOLUTION, load_digits, split_digits

NUM_FEATURES = NUM_CLASSES * (NUM_CLASSES - 1) // 2


class DigitsExtractor:
    """The 45 decision values of a support vector machine, one for each pair of digits, about -3 to 3.

    It is the machine that the shipped model's card measures with (kernel exp(−0.001 |x − y|²) on pixels 0 … 16,
    C = 10), trained on the 1,501 digits of the training part. Training takes a second. It is a convex problem with one
    solution, so the features do not depend on a seed, and on the machine only by rounding and the tolerance of 1e-6.

    Raises ModuleNotFoundError, with the command that installs it, when scikit-learn is missing.
    """

    def __init__(self) -> None:
        training, _ = split_digits()
        from sklearn.svm import SVC

        self._machine = SVC(C=10, gamma=0.001, tol=1e-6, decision_function_shape="ovo")
        self._machine.fit(_pixels(_as_bytes(training.images)), training.labels.numpy())

    def __call__(self, images: Tensor) -> Tensor:
        """Features float64 [N, 45] of images uint8 [N, 1, 8, 8]; ValueError for another shape or type."""
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != (1, RESOLUTION, RESOLUTION):
            raise ValueError(
                f"images: {images.dtype} {list(images.shape)}; the digits extractor takes grey digits of 8×8 pixels, "
                f"uint8 [N, 1, {RESOLUTION}, {RESOLUTION}]"
            )
        return torch.from_numpy(self._machine.decision_function(_pixels(images)))


def digits_images(rgb: bool = False) -> TensorImages:
    """All 1,797 digits as images, 8×8 and grey or repeated to `rgb`, by the rule that makes files of generated images.

    Raises ModuleNotFoundError, with the command that installs it, when scikit-learn is missing.
    """
    return TensorImages(_as_bytes(load_digits().images), rgb)


def _as_bytes(images: Tensor) -> Tensor:
    return torch.from_numpy(image_bytes.to_bytes(images)).permute(0, 3, 1, 2)


def _pixels(images: Tensor) -> np.ndarray:
    """float64 [N, 64] on the data's scale, 0 … 16."""
    return (images.cpu().double() * (16 / 255)).flatten(1).numpy()
