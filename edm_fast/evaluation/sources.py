"""Where images come from: all sources give the bytes that image files hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from edm_fast import images as image_bytes
from edm_fast.ops.tensors import seed_tensor
from edm_fast.samplers import sample
from edm_fast.samplers.noise import random_classes


class ImageSource(ABC):
    """Images of one shape, in an order that is always the same.

    Args:
        rgb: repeat grey images to three channels.
    """

    def __init__(self, shape: Sequence[int], rgb: bool = False) -> None:
        channels, height, width = shape
        self._repeats = 3 if rgb and channels == 1 else 1
        self.shape = (channels * self._repeats, height, width)

    @abstractmethod
    def __len__(self) -> int:
        """The number of images."""

    @abstractmethod
    def read(self, part: slice) -> Tensor:
        """Those images as uint8 [n, C, H, W], before any repetition of channels."""

    def batches(self, batch: int) -> Iterator[Tensor]:
        """All images in order as uint8 [n, C, H, W], 0 … 255, n = `batch` but for the last."""
        if batch < 1:
            raise ValueError(f"batch: got {batch}; it must be at least 1")
        for start in range(0, len(self), batch):
            yield self.read(slice(start, start + batch)).repeat(1, self._repeats, 1, 1)


class TensorImages(ImageSource):
    """Images that are there: uint8 [N, C, H, W]; TypeError or ValueError for another type or shape."""

    def __init__(self, images: Tensor, rgb: bool = False) -> None:
        if images.dtype != torch.uint8:
            raise TypeError(f"images: dtype is {images.dtype}; uint8 from 0 to 255 is needed")
        if images.ndim != 4:
            raise ValueError(f"images: shape is {tuple(images.shape)}; [N, C, H, W] is needed")
        super().__init__(images.shape[1:], rgb)
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def read(self, part: slice) -> Tensor:
        return self._images[part]


class SampledImages(ImageSource):
    """What `edm_fast.sample` makes of seeds, when it is asked for, rounded as `edm-fast generate` writes it.

    Args:
        net: a network of this library, or another with img_channels and img_resolution.
        seeds: integers of 64 bits.
        class_labels: an id for each seed, or rows; None: for networks with classes, a random one by seed, the one that
            `edm-fast generate` takes.
        rgb: repeat grey images to three channels.
        options: those of `edm_fast.sample`.

    `batches` raises what `edm_fast.sample` raises.
    """

    def __init__(
        self, net: Any, seeds: Sequence[int], class_labels: Any = None, rgb: bool = False, **options: Any
    ) -> None:
        shape = (net.img_channels, net.img_resolution, net.img_resolution)
        super().__init__(shape, rgb)
        self._net, self._seeds, self._options = net, list(seeds), options
        if class_labels is not None and len(class_labels) != len(self._seeds):
            raise ValueError(f"class_labels: got {len(class_labels)} for {len(self._seeds)} seeds")
        classes: int = getattr(net, "label_dim", 0)
        if class_labels is None and classes:
            keys = seed_tensor(self._seeds, "cpu")
            class_labels = random_classes(keys, classes, options.get("rng", "philox"), shape)
        self._labels = class_labels

    def __len__(self) -> int:
        return len(self._seeds)

    def read(self, part: slice) -> Tensor:
        seeds = self._seeds[part]
        labels = None if self._labels is None else self._labels[part]
        made = sample(self._net, seeds, labels, batch=len(seeds), **self._options)
        return torch.from_numpy(image_bytes.to_bytes(made)).permute(0, 3, 1, 2)
