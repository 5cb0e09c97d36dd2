"""Data to train on: the built-in digits, image folders, zip archives and arrays, all as `ImageData`."""

from __future__ import annotations

from edm_fast.training.data.digits import NUM_CLASSES, Dataset, held_out_mask, load_digits, split_digits
from edm_fast.training.data.image_data import ImageData, to_float
from edm_fast.training.data.opening import open_data

__all__ = [
    "NUM_CLASSES",
    "Dataset",
    "ImageData",
    "held_out_mask",
    "load_digits",
    "open_data",
    "split_digits",
    "to_float",
]
