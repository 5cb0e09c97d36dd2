"""Image files for the tests of training data: a few small pictures, in a folder or a zip."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# In the order that the readers must find.
NAMES = ["00000/img0.png", "00000/img1.png", "00001/img2.png", "img3.png"]


def pixels(count: int = 4, resolution: int = 6, channels: int = 3) -> np.ndarray:
    """uint8 [N, R, R, C], other values in each image."""
    return np.random.default_rng(0).integers(0, 256, [count, resolution, resolution, channels], dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    """An image file of uint8 [H, W, C]."""
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    buffer = io.BytesIO()
    (picture if mode is None else picture.convert(mode)).save(buffer, format=kind, **options)
    return buffer.getvalue()


def files_of(images: np.ndarray, labels: Any = "absent") -> dict[str, bytes]:
    """PNG files by name, and `dataset.json` with `labels`, one for each name or null, unless they are absent."""
    files = {name: encoded(image) for name, image in zip(NAMES, images, strict=True)}
    if labels != "absent":
        pairs = None if labels is None else [list(pair) for pair in zip(NAMES, labels, strict=True)]
        files["dataset.json"] = json.dumps({"labels": pairs}).encode()
    return files


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    # Backwards, so that the order on disk is not the one that is asked for.
    for name in reversed(files):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(files[name])
    return path


def write_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("00000/", b"")
        for name in reversed(files):
            archive.writestr(name, files[name])
    return path


def write_either(path: Path, files: dict[str, bytes], kind: str) -> Path:
    """The files as a folder or as a zip beside `path`."""
    return write_folder(path, files) if kind == "folder" else write_zip(path.with_suffix(".zip"), files)


def flipped(content: bytes, at: int) -> bytes:
    """A file with one bit changed."""
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
