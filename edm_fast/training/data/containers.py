"""Where encoded images lie: a folder, or a zip archive of which nothing is extracted to disk.

Names are relative, with slashes, sorted as strings. Hidden files, those with a part of their name that begins with a
dot, are passed over. Every other file but `dataset.json` at the top must be an image by its suffix.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from edm_fast.errors import DataError
from edm_fast.training.data.labels import LABELS_FILE

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Far above an image that a network here can take, and low enough that a lying archive costs little memory.
MAX_IMAGE_BYTES = 256 * 2**20
MAX_LABELS_BYTES = 256 * 2**20

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 1


class Container(ABC):
    """`names` of the images and their `sizes` in bytes; `path` for messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = []
        self.sizes: list[int] = []

    @abstractmethod
    def where(self, name: str) -> str:
        """A file's name for messages."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The bytes of an image; DataError, which names it, when they cannot be read."""

    @abstractmethod
    def read_labels(self) -> bytes | None:
        """The bytes of `dataset.json`, or None where there is none."""


def _image_names(container: Container, found: Iterable[str]) -> list[str]:
    """Those of the names that are images, sorted; DataError for a file of another kind and where there is no image."""
    names = sorted(
        name for name in found if name != LABELS_FILE and not any(part.startswith(".") for part in name.split("/"))
    )
    foreign = [name for name in names if os.path.splitext(name)[1].lower() not in SUFFIXES]
    if foreign:
        more = f" (nor are {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise DataError(f"{container.where(foreign[0])}: not an image{more}; images end in {', '.join(SUFFIXES)}")
    if not names:
        raise DataError(f"{container.path}: there is no image in it; images end in {', '.join(SUFFIXES)}")
    return names


def _check_size(where: str, size: int, limit: int) -> None:
    if size > limit:
        raise DataError(f"{where}: {size} bytes, more than the {limit} that are read")


class Folder(Container):
    """The files under a folder, also through links to files and folders.

    Raises DataError for a file that is no image, for what is no regular file, for a folder that is reached twice, and
    when anything cannot be read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.names = _image_names(self, self._walk())
        self.sizes = [self._size(name, MAX_IMAGE_BYTES) for name in self.names]

    def _walk(self) -> Iterator[str]:
        def refuse(error: OSError) -> None:
            raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error

        seen = set()
        for folder, subfolders, files in os.walk(self.path, onerror=refuse, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                raise DataError(f"{folder}: a link to a folder that is among the data already")
            seen.add(real)
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for name in files:
                yield Path(folder, name).relative_to(self.path).as_posix()

    def where(self, name: str) -> str:
        return str(self.path / name)

    def _size(self, name: str, limit: int) -> int:
        try:
            status = os.stat(self.path / name)
        except OSError as error:
            raise DataError(f"{self.where(name)}: cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{self.where(name)}: not a regular file")
        _check_size(self.where(name), status.st_size, limit)
        return status.st_size

    def _content(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.where(name)}: cannot be read: {error.strerror}") from error

    def read(self, index: int) -> bytes:
        return self._content(self.names[index])

    def read_labels(self) -> bytes | None:
        if not os.path.lexists(self.path / LABELS_FILE):
            return None
        self._size(LABELS_FILE, MAX_LABELS_BYTES)
        return self._content(LABELS_FILE)


class _Member(NamedTuple):
    """Where a member's header lies, its packed and its full size, whether it is deflated, and its CRC-32."""

    header: int
    packed: int
    size: int
    deflated: bool
    crc32: int


class Archive(Container):
    """The members of a zip file, stored or deflated.

    The directory is read once. Members are then read from one descriptor at positions that each read gives, so that
    threads and forked processes share it without a lock; a process that gets the object by pickling opens its own.

    Raises DataError for what is no whole zip file, for a member that is no image, that is encrypted, packed by another
    method or larger than any image, and for a name that comes twice.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._descriptor = self._open()
        try:
            with open(self._descriptor, "rb", closefd=False) as file, zipfile.ZipFile(file) as archive:
                found = [info for info in archive.infolist() if not info.is_dir()]
        except zipfile.BadZipFile as error:
            raise DataError(f"{path}: truncated, damaged or no zip file: {error}") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        by_name: dict[str, zipfile.ZipInfo] = {}
        for info in found:
            if by_name.setdefault(info.filename, info) is not info:
                raise DataError(f"{self.where(info.filename)}: the archive has two members of this name")
        self.names = _image_names(self, by_name)
        self._members = [self._checked(by_name[name], MAX_IMAGE_BYTES) for name in self.names]
        self.sizes = [member.size for member in self._members]
        labels = by_name.get(LABELS_FILE)
        self._labels = None if labels is None else self._checked(labels, MAX_LABELS_BYTES)

    def where(self, name: str) -> str:
        return f"{self.path}: {name[:200]!r}"

    def _checked(self, info: zipfile.ZipInfo, limit: int) -> _Member:
        where = self.where(info.filename)
        if info.flag_bits & _ENCRYPTED:
            raise DataError(f"{where}: encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{where}: packed by method {info.compress_type}; only stored and deflated are read")
        _check_size(where, info.file_size, limit)
        _check_size(where, info.compress_size, limit)
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        return _Member(info.header_offset, info.compress_size, info.file_size, deflated, info.CRC)

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_descriptor"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._descriptor = self._open()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def _content(self, name: str, member: _Member) -> bytes:
        try:
            header = os.pread(self._descriptor, _LOCAL_HEADER.size, member.header)
            if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
                raise DataError(f"{self.where(name)}: damaged: there is no member where the archive's directory says")
            name_size, extra_size = _LOCAL_HEADER.unpack(header)[-2:]
            start = member.header + _LOCAL_HEADER.size + name_size + extra_size
            content = os.pread(self._descriptor, member.packed, start)
        except OSError as error:
            raise DataError(f"{self.where(name)}: cannot be read: {error.strerror}") from error
        if member.deflated:
            try:
                # One byte more than claimed tells a member that is longer, whatever it would unpack to.
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.size + 1)
            except zlib.error as error:
                raise DataError(f"{self.where(name)}: damaged: {error}") from error
        if len(content) != member.size or zlib.crc32(content) != member.crc32:
            raise DataError(f"{self.where(name)}: truncated or damaged: size or checksum is not that of the directory")
        return content

    def read(self, index: int) -> bytes:
        return self._content(self.names[index], self._members[index])

    def read_labels(self) -> bytes | None:
        return None if self._labels is None else self._content(LABELS_FILE, self._labels)
