"""What reading a pickle gives: plain data and these records. None of them runs or imports anything."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edm_fast.errors import CheckpointError

_CHUNK = 1 << 20


class Name(str):
    """A global that the file mentions and the vocabulary allows: its dotted name, never the object."""

    __slots__ = ()


class NamedDict(dict[Any, Any]):
    """A dict that the file made by calling a class (OrderedDict, EasyDict); attributes of the original are dropped."""

    __slots__ = ()


class LongText:
    """A long string, left undecoded in the file: a module's source, or bytes that protocol 2 wrote as text."""

    def __init__(self, utf8: memoryview) -> None:
        self.utf8 = utf8

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.utf8).hexdigest()

    def latin1(self) -> bytearray:
        """The bytes whose Latin-1 decoding this text is; CheckpointError if it is not one."""
        result = bytearray()
        rest = b""
        try:
            for start in range(0, len(self.utf8), _CHUNK):
                chunk = rest + bytes(self.utf8[start : start + _CHUNK])
                # Latin-1 characters take one or two bytes of UTF-8; a lead byte waits for the next chunk.
                whole = len(chunk) - (chunk[-1] >= 0xC0)
                rest = chunk[whole:]
                result += chunk[:whole].decode().encode("latin-1")
            rest.decode()
        except (UnicodeDecodeError, UnicodeEncodeError) as error:
            raise CheckpointError(f"text of {len(self.utf8)} bytes is no bytes in Latin-1: {error.reason}") from None
        return result


@dataclass(eq=False, slots=True)
class Instance:
    """An object of a class that is known by name: its attributes, and for EDM's classes their source, as mere text."""

    class_name: str
    state: dict[Any, Any] = field(default_factory=dict)
    source: LongText | str | None = None

    @property
    def source_sha256(self) -> str | None:
        if isinstance(self.source, str):
            return hashlib.sha256(self.source.encode("utf-8", "surrogatepass")).hexdigest()
        return None if self.source is None else self.source.sha256


@dataclass(eq=False, slots=True)
class Storage:
    """`count` elements of `dtype`; `data` are their bytes, a view of the file. `crc32` is recorded, not yet checked."""

    dtype: torch.dtype
    count: int
    data: memoryview | None = None
    crc32: int | None = None


@dataclass(eq=False, slots=True)
class StoredTensor:
    """A tensor in the file: a strided part of a storage, whose bounds are checked already; `offset` is in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def extent(self) -> int:
        """How many elements lie between the first and the last, both included."""
        if 0 in self.shape:
            return 0
        return sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)) + 1

    @property
    def extent_bytes(self) -> int:
        return self.extent * self.dtype.itemsize

    def copy(self, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """The tensor in memory of its own, contiguous, [*shape], of `dtype` on `device`."""
        if not self.extent:
            return torch.empty(self.shape, dtype=dtype, device=device)
        assert self.storage.data is not None
        itemsize = self.dtype.itemsize
        part = self.storage.data[self.offset * itemsize : (self.offset + self.extent) * itemsize]
        # The file may hold it at any byte; a copy of bytes is aligned and needs no alignment.
        own = torch.frombuffer(part, dtype=torch.uint8).clone()
        return own.view(self.dtype).as_strided(self.shape, self.stride).to(device, dtype).contiguous()


@dataclass(eq=False, slots=True)
class NumpyDtype:
    """A dtype of plain numbers, little-endian."""

    dtype: np.dtype[Any]


@dataclass(eq=False, slots=True)
class NumpyArray:
    """An array that a later opcode fills in."""

    value: np.ndarray[Any, Any] | None = None
