"""What a training run asks of its data, and data that lie in memory."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from edm_fast.training.data.labels import Labels


def to_float(images: Tensor) -> Tensor:
    """float32 in [-1, 1] of a batch, on the device of the batch: x/127.5 − 1 of uint8; float32 is returned as it is.

    Raises TypeError for another dtype.
    """
    if images.dtype == torch.uint8:
        return images.to(torch.float32) / 127.5 - 1
    if images.dtype != torch.float32:
        raise TypeError(f"images must be uint8 or float32, but they are {images.dtype}")
    return images


class ImageData(ABC):
    """Square images of one size with labels, numbered from 0 to len − 1, checked when they were opened.

    `batch` may be called from several threads, and from forked or spawned processes: it keeps no position.

    Attributes:
        name: where the data come from.
        resolution: height and width of an image.
        num_channels: 1 for grey, 3 for RGB.
        label_dim: width of a label; 0 without labels.
        fingerprint: a hash that differs for other images or labels; see the readers for what they put in.
    """

    def __init__(
        self, name: str, count: int, resolution: int, num_channels: int, labels: Labels, fingerprint: str
    ) -> None:
        self.name = name
        self.resolution = resolution
        self.num_channels = num_channels
        self.label_dim = labels.label_dim
        self.fingerprint = fingerprint
        self._count = count
        self._labels = labels

    def __len__(self) -> int:
        return self._count

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Return (images [n, C, R, R], labels float32 [n, label_dim]) of the images at integer indices [n], on the CPU.

        Images from files are uint8 and lie channels-last in memory, so that a quarter of the bytes go to the device;
        `to_float` there brings them to [-1, 1]. The digits, which have 17 levels, are float32 in [-1, 1] already.

        Raises TypeError for indices that are no integers, IndexError for one that is negative or too large, and
        DataError for an image that was replaced or damaged since it was checked.
        """
        given = torch.as_tensor(indices, device="cpu")
        if given.numel() and (given.is_floating_point() or given.dtype == torch.bool):
            raise TypeError(f"indices must be integers, but they are {given.dtype}")
        chosen = given.to(torch.int64)
        if chosen.numel() and (int(chosen.min()) < 0 or int(chosen.max()) >= self._count):
            raise IndexError(f"indices must be from 0 to {self._count - 1}, but they are {chosen.tolist()[:8]}")
        return self._images(chosen), self._labels.take(chosen)

    @abstractmethod
    def _images(self, indices: Tensor) -> Tensor:
        """Images [n, C, R, R] at indices int64 [n] that are in range."""


class ArrayData(ImageData):
    """Images that lie in memory: `images` uint8 or float32 [N, C, R, R] of any memory layout, which batches keep."""

    def __init__(self, name: str, images: Tensor, labels: Labels, fingerprint: str) -> None:
        count, channels, resolution, _ = images.shape
        super().__init__(name, count, resolution, channels, labels, fingerprint)
        self._stored = images

    def _images(self, indices: Tensor) -> Tensor:
        return self._stored[indices]


def fingerprint_of(shape: Sequence[int], labels: Labels, parts: Iterable[bytes | memoryview]) -> str:
    """SHA-256, in hexadecimal digits, of the shape of an image, the labels, and what else tells the data apart."""
    digest = hashlib.sha256(f"{list(shape)} {labels.values.dtype} {list(labels.values.shape)}\n".encode())
    digest.update(labels.values.contiguous().numpy().tobytes())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
