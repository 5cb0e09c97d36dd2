"""The 8×8 digits as images, and features of such images.

The features are the pixels, as in the Fréchet distance on the shipped model's card: on images this small they need no
network, are the same on every machine, and a principal component analysis would only turn them. Decision values of a
classifier tell digits apart better but not digits from anything else: those of the card's support vector machine put
all images that are unlike its training images on one point, near real digits, and noise looked precise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edm_fast import images as image_bytes
from edm_fast.evaluation.sources import TensorImages
from edm_fast.training.data.digits import RESOLUTION, load_digits


def digits_features(images: Tensor) -> Tensor:
    """The 64 pixels on the data's scale: float64 [N, 64] in 0 … 16 of images uint8 [N, 1, 8, 8], 0 … 255.

    ValueError for images of another shape or type.
    """
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != (1, RESOLUTION, RESOLUTION):
        raise ValueError(
            f"images: {images.dtype} {list(images.shape)}; the digits extractor takes grey images of 8×8 pixels, "
            f"uint8 [N, 1, {RESOLUTION}, {RESOLUTION}]"
        )
    return images.flatten(1).double() * (16 / 255)


def digits_images(rgb: bool = False) -> TensorImages:
    """All 1,797 digits as images, 8×8 and grey or repeated to `rgb`, by the rule that makes files of generated images.

    Raises ModuleNotFoundError, with the command that installs it, when scikit-learn is missing.
    """
    return TensorImages(torch.from_numpy(image_bytes.to_bytes(load_digits().images)).permute(0, 3, 1, 2), rgb)
