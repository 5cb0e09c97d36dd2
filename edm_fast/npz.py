"""Opening an .npz file of arrays, whatever it turns out to be."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np


def open_npz(file: BinaryIO) -> np.lib.npyio.NpzFile:
    """NumPy's reader of a file that is open at its beginning; nothing in it is unpickled.

    Raises:
        ValueError: it is of another kind; says which.
        Exception: whatever NumPy and zipfile raise for a damaged archive.
    """
    begin = file.read(6)
    file.seek(0)
    if begin == b"\x93NUMPY":
        raise ValueError("a single array; numpy.savez writes .npz files")
    if not begin.startswith((b"PK\x03\x04", b"PK\x05\x06")):  # NumPy would take it for a pickle
        raise ValueError("not a zip archive" if begin else "empty")
    archive = np.load(file, allow_pickle=False)
    assert isinstance(archive, np.lib.npyio.NpzFile)
    return archive
