"""A checkpoint's bytes: a file mapped into memory, or what an open file holds."""

from __future__ import annotations

import io
import mmap
import os
from typing import Any, BinaryIO

from edm_fast.errors import CheckpointError

PathOrFile = str | os.PathLike[str] | BinaryIO


class Source:
    """`name` for messages, and `data`, a writable view whose changes never reach the file."""

    def __init__(self, path_or_file: PathOrFile) -> None:
        self._mapping: mmap.mmap | None = None
        if isinstance(path_or_file, (str, os.PathLike)):
            self.name = os.fspath(path_or_file)
            with open(path_or_file, "rb") as file:
                self.data = self._read(file)
        elif hasattr(path_or_file, "read"):
            name: Any = getattr(path_or_file, "name", None)
            self.name = name if isinstance(name, str) else f"<{type(path_or_file).__name__}>"
            self.data = self._read(path_or_file)
        else:
            raise TypeError(f"path must be a path or a file open for reading bytes, but it is {path_or_file!r}")
        if not len(self.data):
            raise CheckpointError(f"{self.name}: truncated: it is empty")

    def _read(self, file: BinaryIO) -> memoryview:
        """All that follows the file's position."""
        if isinstance(file, io.TextIOBase):
            raise TypeError(f"{self.name}: it must be open for reading bytes, but it is open for text")
        start = file.tell() if file.seekable() else 0
        if isinstance(file, (io.BufferedReader, io.FileIO, io.BufferedRandom)):
            size = os.fstat(file.fileno()).st_size
            if size <= start:
                return memoryview(b"")
            # Private pages: a view of them counts as writable, as torch wants it, and no write reaches the file.
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            return memoryview(self._mapping)[start:]
        content = file.read()
        if not isinstance(content, bytes):
            raise TypeError(f"{self.name}: it must be open for reading bytes, but it gives {type(content).__name__}")
        return memoryview(bytearray(content))

    def forget(self) -> None:
        """Let go of the memory that holds what was read of a mapped file; reading it again is still possible."""
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)
