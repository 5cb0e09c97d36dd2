"""A folder of image files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from edm_fast.evaluation.sources import ImageSource
from edm_fast.files import GRID, MANIFEST

FORMATS = ("PNG", "JPEG")
_CHANNELS = {"L": 1, "RGB": 3}


class FolderImages(ImageSource):
    """The PNG and JPEG files of a folder and its subfolders, sorted by their path.

    Every file is opened before any work, to its header. Passed over are hidden files, whose names begin with a dot, and
    in a folder of `edm-fast generate` its manifest and contact sheet.

    Args:
        rgb: give grey images three channels, so that they may stand among coloured ones.

    Raises ValueError, naming the file, for one that is not such an image, is neither grey nor RGB in 8 bits, or differs
    from the others in size or channels; for a folder without images; OSError for what cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str], rgb: bool = False) -> None:
        self.folder = Path(folder)
        self._rgb = rgb
        self._paths = sorted(_files(self.folder))
        if not self._paths:
            raise ValueError(f"{self.folder}: holds no image")
        shapes = [_shape(path, rgb) for path in self._paths]
        [(usual, _)] = Counter(shapes).most_common(1)
        for path, shape in zip(self._paths, shapes, strict=True):
            if shape != usual:
                raise ValueError(f"{path}: is {_text(shape)}; the other images are {_text(usual)}")
        super().__init__(usual)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, part: slice) -> Tensor:
        return torch.from_numpy(np.stack([self._pixels(path) for path in self._paths[part]])).permute(0, 3, 1, 2)

    def _pixels(self, path: Path) -> np.ndarray:
        """uint8 [H, W, C]."""
        try:
            with Image.open(path, formats=FORMATS) as image:
                pixels = np.atleast_3d(np.asarray(image.convert("RGB") if self._rgb else image))
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path}: is damaged: {error}") from error
        channels, height, width = self.shape
        if pixels.shape != (height, width, channels):
            raise ValueError(f"{path}: was changed while it was being read")
        return pixels


def _files(folder: Path) -> Iterator[Path]:
    """All files that are to be images; ValueError for a link to a folder, which could lead in circles."""

    def stop(error: OSError) -> NoReturn:
        raise error

    for place, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if (Path(place) / name).is_symlink():
                raise ValueError(f"{Path(place) / name}: is a link to a folder; give that folder itself")
        ours = {MANIFEST, GRID} if MANIFEST in names else set()
        yield from (Path(place) / name for name in names if not name.startswith(".") and name not in ours)


def _shape(path: Path, rgb: bool) -> tuple[int, int, int]:
    """(C, H, W) by the file's header."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            mode, (width, height) = image.mode, image.size
    except UnidentifiedImageError:
        raise ValueError(f"{path}: is not a PNG or JPEG image") from None
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: is not an image that can be read: {error}") from error
    if mode not in _CHANNELS:
        raise ValueError(f"{path}: has the colour mode {mode}; grey (L) or RGB in 8 bits, without alpha, is needed")
    return (3 if rgb else _CHANNELS[mode], height, width)


def _text(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{width}×{height} in {'grey' if channels == 1 else 'colour'}"
