"""From a name or a path to checked data."""

from __future__ import annotations

import os
from pathlib import Path

from edm_fast.errors import DataError
from edm_fast.training.data.arrays import open_arrays
from edm_fast.training.data.containers import Archive, Folder
from edm_fast.training.data.digits import digits_data
from edm_fast.training.data.encoded import open_encoded
from edm_fast.training.data.image_data import ImageData

BUILT_IN = "digits"


def open_data(
    source: str | os.PathLike[str], *, memory: int = 2**30, checked: bool = False, progress: bool = False
) -> ImageData:
    """Open data to train on and check all of them, so that nothing bad is found in the middle of a run.

    Args:
        source: 'digits', the built-in training part; or the path of a folder of images (of its subfolders too; write
            ./digits for one of that name), of a `.zip` of images, or of an `.npz` of arrays.
        memory: images of a folder or zip that take at most so many bytes decoded are kept in memory; larger data are
            read and decoded batch by batch.
        checked: another process has opened these data: of those that are not kept in memory only the first image is
            looked at. Each image is still checked when it is read.
        progress: show a bar while images are decoded.

    Folders and zips take labels from a `dataset.json` at their top, {"labels": [["00000/img.png", 6], …]}, with class
    ids or rows of numbers, for all images or none. Images are square, of one size, 8-bit grey or RGB; nothing is
    converted.

    Raises DataError, which names the file and what is wrong with it, and ModuleNotFoundError for 'digits' without
    scikit-learn.
    """
    if source == BUILT_IN:
        return digits_data()
    path = Path(source)
    if path.is_dir():
        return open_encoded(Folder(path), memory, checked, progress)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; the built-in data are named {BUILT_IN}")
    suffix = path.suffix.lower()
    if suffix == ".zip":
        return open_encoded(Archive(path), memory, checked, progress)
    if suffix == ".npz":
        return open_arrays(path)
    raise DataError(f"{path}: data must be a folder of images, a .zip, an .npz, or {BUILT_IN}")
