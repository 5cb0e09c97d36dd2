"""The built-in data: the handwritten digits that come with scikit-learn, split once and for all.

1,797 grey images of 8×8 pixels in 10 classes, with values 0 … 16 scaled to [-1, 1]: the test part of the UCI data set
"Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998, CC BY 4.0). In each class, in the order of the
data set, every sixth image is held out, which leaves 1,501 images for training and 296 that training never sees. The
rule needs no random numbers and takes from every writer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from edm_fast.training.data.image_data import ArrayData, ImageData, fingerprint_of
from edm_fast.training.data.labels import Labels

NUM_CLASSES = 10
RESOLUTION = 8
HELD_OUT_EVERY = 6


class Dataset(NamedTuple):
    """Images float32 [N, C, H, W] in [-1, 1] and their class ids int64 [N]."""

    images: Tensor
    labels: Tensor


def load_digits() -> Dataset:
    """Return all 1,797 digits in the order of scikit-learn; images [1797, 1, 8, 8].

    Raises ModuleNotFoundError, with the command that installs it, when scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits as sklearn_digits
    except ImportError as error:
        raise ModuleNotFoundError(
            "the digits come with scikit-learn, which is not installed; install it by: pip install 'edm-fast[train]'"
        ) from error
    digits = sklearn_digits()
    images = torch.as_tensor(digits.images, dtype=torch.float32, device="cpu")[:, None] / 8 - 1
    return Dataset(images, torch.as_tensor(digits.target, dtype=torch.int64, device="cpu"))


def held_out_mask(labels: Tensor) -> Tensor:
    """Return bool [N]: True for the sixth, twelfth, … image of each class, counted in the given order."""
    one_hot = torch.nn.functional.one_hot(labels, NUM_CLASSES)
    position = one_hot.cumsum(dim=0).gather(1, labels[:, None])[:, 0]
    return position % HELD_OUT_EVERY == 0


def split_digits() -> tuple[Dataset, Dataset]:
    """Return (training part, held-out part) of the digits.

    Raises ModuleNotFoundError, with the command that installs it, when scikit-learn is missing.
    """
    images, labels = load_digits()
    held_out = held_out_mask(labels)
    return Dataset(images[~held_out], labels[~held_out]), Dataset(images[held_out], labels[held_out])


def digits_data() -> ImageData:
    """Return the training part as data to train on; its batches are float32 in [-1, 1].

    Raises ModuleNotFoundError, with the command that installs it, when scikit-learn is missing.
    """
    images, ids = split_digits()[0]
    labels = Labels(ids, NUM_CLASSES)
    pixels = images.contiguous()
    fingerprint = fingerprint_of(images.shape[1:], labels, [pixels.numpy().tobytes()])
    return ArrayData("digits", pixels, labels, fingerprint)
