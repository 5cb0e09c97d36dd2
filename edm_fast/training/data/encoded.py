"""Encoded images, PNG, JPEG and others, as training data.

Every image is decoded when the data are opened, since only that finds all damage that can be found: headers say
nothing of the pixels, and the decoder passes over the checksums of a PNG, which are checked besides. A JPEG in a folder
has no checksum: damage that leaves it decodable shows in its pixels alone. In a zip the archive's checksum covers it.
"""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from edm_fast.errors import DataError
from edm_fast.training.data.containers import Container
from edm_fast.training.data.image_data import ArrayData, ImageData, fingerprint_of
from edm_fast.training.data.labels import LABELS_FILE, Labels, labels_from_json, no_labels

# Pillow's other formats hold vector graphics, films and programs, and are never tried on a file.
FORMATS = ["PNG", "JPEG", "WEBP", "BMP"]
MAX_RESOLUTION = 8192
_CHANNELS = {"L": 1, "RGB": 3}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH_AT = 24


class Shape(NamedTuple):
    """Height and width, and the number of channels."""

    resolution: int
    channels: int

    def __str__(self) -> str:
        return f"{self.resolution}x{self.resolution} {'grey' if self.channels == 1 else 'RGB'}"


def _opened(content: bytes, where: str) -> Image.Image:
    """The image, not decoded yet; DataError unless it is one square picture, grey or RGB of 8 bits, not too large."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise DataError(f"{where}: damaged, or none of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow raises whatever a parser runs into
        raise DataError(f"{where}: damaged: {str(error) or type(error).__name__}") from error
    width, height = image.size
    # Pillow drops the lower half of 16-bit colours without a word.
    deep = content.startswith(_PNG_SIGNATURE) and content[_PNG_DEPTH_AT] == 16
    if deep or image.mode not in _CHANNELS or "transparency" in image.info:
        found = "16 bits a channel" if deep else f"mode {image.mode}"
        raise DataError(
            f"{where}: {found}{' with transparency' if 'transparency' in image.info else ''}; "
            f"images must be grey or RGB of 8 bits a channel, without a palette or alpha"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise DataError(f"{where}: {frames} frames; an image must be a single one")
    if width != height:
        raise DataError(f"{where}: {width}x{height}; images must be square, since the networks are built for squares")
    if width > MAX_RESOLUTION:
        raise DataError(f"{where}: {width}x{height}, larger than {MAX_RESOLUTION}x{MAX_RESOLUTION}")
    return image


def shape_of(content: bytes, where: str) -> Shape:
    """The shape that an image's header gives; DataError, which begins with `where`, for one that is not trained on."""
    with _opened(content, where) as image:
        return _shape(image)


def _shape(image: Image.Image) -> Shape:
    return Shape(image.size[0], _CHANNELS[image.mode])


def decode(content: bytes, where: str, shape: Shape) -> np.ndarray:
    """uint8 [R, R, C] of an encoded image; an orientation in its EXIF data is not applied.

    Raises DataError, which begins with `where`, when it is damaged, of another shape, or of a kind that is not trained
    on.
    """
    with _opened(content, where) as image:
        if _shape(image) != shape:
            raise DataError(f"{where}: {_shape(image)}, but the first image is {shape}; all images must be alike")
        try:
            pixels = np.asarray(image)
        except Exception as error:  # Pillow raises whatever a decoder runs into
            raise DataError(f"{where}: truncated or damaged: {str(error) or type(error).__name__}") from error
    return pixels.reshape(*pixels.shape[:2], -1)


def check_png(content: bytes, where: str) -> None:
    """DataError when a checksum inside a PNG is wrong; other formats pass."""
    if content.startswith(_PNG_SIGNATURE):
        try:
            with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
                image.verify()
        except Exception as error:  # as above
            raise DataError(f"{where}: truncated or damaged: {str(error) or type(error).__name__}") from error


class EncodedData(ImageData):
    """Images that are read and decoded anew for each batch."""

    def __init__(self, container: Container, shape: Shape, labels: Labels, fingerprint: str) -> None:
        super().__init__(str(container.path), len(container.names), *shape, labels, fingerprint)
        self._container = container

    def _images(self, indices: Tensor) -> Tensor:
        pixels = np.empty([len(indices), self.resolution, self.resolution, self.num_channels], np.uint8)
        shape = Shape(self.resolution, self.num_channels)
        for row, index in enumerate(indices.tolist()):
            where = self._container.where(self._container.names[index])
            pixels[row] = decode(self._container.read(index), where, shape)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def open_encoded(container: Container, memory: int, checked: bool, progress: bool) -> ImageData:
    """The images of a container, kept in memory when they take at most `memory` bytes; see `open_data`.

    The fingerprint covers shape, labels, names and file sizes, so that a folder and a zip of it have the same.
    """
    names = container.names
    content = container.read_labels()
    labels_name = container.where(LABELS_FILE)
    labels = no_labels(len(names)) if content is None else labels_from_json(content, labels_name, names)
    shape = shape_of(container.read(0), container.where(names[0]))
    files = (
        f"{name}\0{size}\n".encode("utf-8", "surrogateescape")
        for name, size in zip(names, container.sizes, strict=True)
    )
    fingerprint = fingerprint_of([shape.channels, shape.resolution, shape.resolution], labels, files)
    size = [len(names), shape.resolution, shape.resolution, shape.channels]
    kept = np.empty(size, np.uint8) if math.prod(size) <= memory else None
    if kept is not None or not checked:
        for index, name in enumerate(tqdm(names, desc=f"checking {container.path}", unit="img", disable=not progress)):
            encoded = container.read(index)
            if not checked:
                check_png(encoded, container.where(name))
            pixels = decode(encoded, container.where(name), shape)
            if kept is not None:
                kept[index] = pixels
    if kept is None:
        return EncodedData(container, shape, labels, fingerprint)
    return ArrayData(str(container.path), torch.from_numpy(kept).permute(0, 3, 1, 2), labels, fingerprint)
