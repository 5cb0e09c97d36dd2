"""Images as bytes: from the network's range to PNG files and contact sheets."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image


def to_bytes(images: torch.Tensor) -> np.ndarray:
    """uint8 [N, H, W, C] from float images [N, C, H, W] in [-1, 1]: trunc(clip(127.5 x + 128, 0, 255))."""
    scaled = (images.detach().to(torch.float64) * 127.5 + 128).clip(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def png_bytes(pixels: np.ndarray) -> bytes:
    """A PNG file of pixels [H, W, 1] (grey) or [H, W, 3]. ValueError for another number of channels."""
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(f"pixels: shape is {pixels.shape}; PNG files here are grey [H, W, 1] or colour [H, W, 3]")
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def contact_sheet(pixels: np.ndarray, columns: int | None = None) -> np.ndarray:
    """One picture, uint8 [H', W', C], of images [N, H, W, C] in reading order, in rows of `columns` images; by default
    the smallest square that holds them.

    Small images are enlarged, pixel by pixel, to at least 32 pixels, and stand apart by a grey line.
    """
    count, height, width, channels = pixels.shape
    factor = max(1, -(-32 // max(1, min(height, width))))
    gap = factor if factor > 1 else 2
    columns = columns or max(1, math.isqrt(max(count - 1, 0)) + 1)
    rows = max(1, -(-count // columns))
    tile_height, tile_width = height * factor + gap, width * factor + gap
    sheet = np.full([rows * tile_height + gap, columns * tile_width + gap, channels], 96, dtype=np.uint8)
    for index, image in enumerate(pixels):
        top, left = index // columns * tile_height + gap, index % columns * tile_width + gap
        enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
        sheet[top : top + height * factor, left : left + width * factor] = enlarged
    return sheet
