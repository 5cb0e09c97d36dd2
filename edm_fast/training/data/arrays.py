"""Images in an `.npz` file of numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from edm_fast.errors import DataError
from edm_fast.npz import open_npz
from edm_fast.training.data.image_data import ArrayData, ImageData, fingerprint_of
from edm_fast.training.data.labels import labels_from_array, no_labels


def open_arrays(path: Path) -> ImageData:
    """Images and labels of an `.npz` file, held in memory.

    `images` are uint8 [N, R, R] or [N, R, R, C], channels last, C 1 or 3. `labels`, which may be missing, are class
    ids, integers [N], or rows, numbers [N, D]. Other arrays in the file are not read. Nothing in it is unpickled.

    The fingerprint covers shape, labels and pixels. Raises DataError, which names the file, for anything else.
    """
    found = _read(path)
    if "images" not in found:
        raise DataError(f"{path}: it has no array 'images'")
    images = found["images"]
    square = images.ndim in (3, 4) and images.shape[1] == images.shape[2]
    if images.dtype != np.uint8 or not square or images.shape[3:] not in ((), (1,), (3,)) or 0 in images.shape:
        raise DataError(
            f"{path}: images must be uint8 [N, R, R], or [N, R, R, C] with 1 or 3 channels last, N and R at least 1, "
            f"but they are {images.dtype} {list(images.shape)}"
        )
    # A transposed array is stored in Fortran's order.
    pixels = torch.from_numpy(np.ascontiguousarray(images).reshape(*images.shape[:3], -1))
    labels = labels_from_array(found["labels"], str(path), len(images)) if "labels" in found else no_labels(len(images))
    stored = pixels.permute(0, 3, 1, 2)
    return ArrayData(str(path), stored, labels, fingerprint_of(stored.shape[1:], labels, [pixels.numpy().data]))


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file, open_npz(file) as archive:
            found: dict[str, np.ndarray] = {
                name: archive[name] for name in ("images", "labels") if name in archive.files
            }
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise DataError(f"{path}: does not fit in memory, or claims a size that does not: {error}") from error
    except Exception as error:  # numpy's reader and the zip module raise whatever they run into
        raise DataError(f"{path}: truncated, damaged or no .npz file: {str(error) or type(error).__name__}") from error
    for name, array in found.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path}: {name} is not an array in NumPy's format")
    return found
