"""Features of images by an extractor, and what an extractor is."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Extractor = Callable[[Tensor], Tensor]
"""Takes images uint8 [N, C, H, W], 0 … 255, and returns floating-point features [N, F]: a function or an nn.Module."""


def device_of(extractor: Extractor) -> torch.device:
    """Where a module's first parameter or buffer lies; the CPU for functions and modules without any."""
    if isinstance(extractor, torch.nn.Module):
        for tensor in (*extractor.parameters(), *extractor.buffers()):
            return tensor.device
    return torch.device("cpu")


def features_of(extractor: Extractor, images: Tensor, first: int = 0) -> Tensor:
    """Features [N, F] of images uint8 [N, C, H, W], by one call without gradients.

    Args:
        first: the number of the first image, for messages.

    Raises TypeError or ValueError if what the extractor returns is not such a tensor, or is not finite.
    """
    if isinstance(extractor, torch.nn.Module) and extractor.training:
        logger.warning("extractor: is in training mode; extractor.eval() switches it off")
    with torch.no_grad():
        found: Any = extractor(images)
    wanted = f"features [{len(images)}, F] of {len(images)} images are needed"
    if not isinstance(found, Tensor):
        raise TypeError(f"extractor: returned {type(found).__name__}, not a tensor; {wanted}")
    if found.ndim != 2 or found.shape[0] != len(images) or found.shape[1] == 0:
        raise ValueError(f"extractor: returned the shape {tuple(found.shape)}; {wanted}")
    if not found.is_floating_point():
        raise TypeError(f"extractor: returned {found.dtype}; floating-point features are needed")
    broken = (~found.isfinite()).any(dim=1).nonzero()
    if len(broken):
        raise ValueError(f"extractor: the features of image {first + int(broken[0])} hold NaN or infinity")
    return found


class TorchScriptExtractor:
    """The extractor in a TorchScript file.

    **Opening and calling such a file runs the code in it**: take it from people whom you trust with your account.

    Raises ValueError if the file is not TorchScript; OSError if it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> None:
        self.path = path
        self.device = torch.device(device)
        with open(path, "rb") as file:
            try:
                self._module = torch.jit.load(file, map_location=self.device).eval()
            except RuntimeError as error:
                raise ValueError(f"{path}: is not a TorchScript file: {_first_line(error)}") from error

    def __call__(self, images: Tensor) -> Tensor:
        """Features of images; ValueError with the file's name if its code fails on them."""
        try:
            return self._module(images.to(self.device))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            shape = list(images.shape)
            raise ValueError(f"{self.path}: fails on images uint8 {shape}: {_last_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _last_line(error: Exception) -> str:
    """TorchScript puts its traceback first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
