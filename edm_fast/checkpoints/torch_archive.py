"""Files of torch.save: the zip archive of today's torch, and the older sequence of pickles.

Both hold one pickled object that refers to storages by persistent ids, ('storage', class, key, device, count). In the
zip a storage is the member data/<key>. The old form is a sequence: a magic number, a version, facts about the machine,
the object, the list of keys, and for each key a count and the bytes. A pickled tensor is such a sequence too, nested in
the pickle as bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edm_fast.checkpoints.budget import Budget
from edm_fast.checkpoints.pickle_reader import Vocabulary, read_pickle
from edm_fast.checkpoints.records import Name, Storage
from edm_fast.checkpoints.zip_reader import check_crc32, zip_members
from edm_fast.errors import CheckpointError

STORAGES = {
    Name("torch.FloatStorage"): torch.float32,
    Name("torch.DoubleStorage"): torch.float64,
    Name("torch.HalfStorage"): torch.float16,
    Name("torch.BFloat16Storage"): torch.bfloat16,
    Name("torch.LongStorage"): torch.int64,
    Name("torch.IntStorage"): torch.int32,
    Name("torch.ShortStorage"): torch.int16,
    Name("torch.CharStorage"): torch.int8,
    Name("torch.ByteStorage"): torch.uint8,
    Name("torch.BoolStorage"): torch.bool,
}
_STORAGE_NAMES = {str(name): name for name in STORAGES}

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
# The magic number, pickled, is how an old file begins.
LEGACY_START = b"\x80\x02\x8a\x0a" + _MAGIC.to_bytes(10, "little") + b"."
MAX_COUNT = 2**40

# Given what resolves persistent ids, the vocabulary of the archive's object.
MakeVocabulary = Callable[[Callable[[Any], Storage]], Vocabulary]


def storage_name(dotted: str) -> Name | None:
    """The record of a storage class of torch's, or None."""
    return _STORAGE_NAMES.get(dotted)


class _Storages:
    """The storages that persistent ids name."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}

    def resolve(self, identifier: Any) -> Storage:
        if type(identifier) is not tuple or len(identifier) not in (5, 6):
            raise CheckpointError("a persistent id is no ('storage', class, key, device, count)")
        kind, cls, key, device, count = identifier[:5]
        if kind != "storage" or type(cls) is not Name or cls not in STORAGES or type(device) is not str:
            raise CheckpointError("a persistent id is no ('storage', class, key, device, count)")
        if type(key) is not str or type(count) is not int or not 0 <= count <= MAX_COUNT:
            raise CheckpointError(f"a storage has the key {str(key)[:80]!r} and {str(count)[:80]} elements")
        if len(identifier) == 6 and identifier[5] is not None:
            raise CheckpointError(f"storage {key[:80]!r} is a view of another; such files are not read")
        if key not in self.by_key:
            self.by_key[key] = self.create(key, STORAGES[cls], count)
        storage = self.by_key[key]
        if (storage.dtype, storage.count) != (STORAGES[cls], count):
            raise CheckpointError(f"storage {key[:80]!r} has two sizes or dtypes")
        return storage

    def create(self, key: str, dtype: torch.dtype, count: int) -> Storage:
        return Storage(dtype, count)


class _ZipStorages(_Storages):
    def __init__(self, data: memoryview) -> None:
        super().__init__()
        self.members = zip_members(data)
        pickles = [name for name in self.members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(
                f"the archive has {len(pickles)} members named data.pkl, so torch.save did not write it"
            )
        self.folder = pickles[0].removesuffix("data.pkl")
        order = self.members.get(f"{self.folder}byteorder")
        if order is not None and order.data != b"little":
            raise CheckpointError("the archive is big-endian")

    def create(self, key: str, dtype: torch.dtype, count: int) -> Storage:
        member = self.members.get(f"{self.folder}data/{key}")
        if member is None:
            raise CheckpointError(f"truncated or damaged: the archive has no storage {key[:80]!r}")
        if len(member.data) != count * dtype.itemsize:
            raise CheckpointError(
                f"storage {key[:80]!r} is {len(member.data)} bytes; {count} elements take {count * dtype.itemsize}"
            )
        return Storage(dtype, count, member.data, member.crc32)


def read_zip(data: memoryview, budget: Budget, vocabulary: MakeVocabulary) -> Any:
    """The object in a zip file of torch.save. Storages are views of `data`; their checksums are left to be checked."""
    storages = _ZipStorages(data)
    name = f"{storages.folder}data.pkl"
    member = storages.members[name]
    check_crc32(name, member.data, member.crc32)
    value, end = read_pickle(member.data, 0, vocabulary(storages.resolve), budget)
    if end != len(member.data):
        raise CheckpointError(f"{len(member.data) - end} bytes follow the pickle in {name!r}")
    return value


def read_legacy(data: memoryview, budget: Budget, vocabulary: MakeVocabulary) -> Any:
    """The object in a sequence of pickles of torch.save, which `data` holds and nothing else."""
    plain = Vocabulary()
    magic, position = read_pickle(data, 0, plain, budget)
    version, position = read_pickle(data, position, plain, budget)
    machine, position = read_pickle(data, position, plain, budget)
    if (magic, version) != (_MAGIC, _VERSION) or type(machine) is not dict:
        raise CheckpointError("bytes in place of a storage are no file of torch.save")
    if machine.get("little_endian") is not True:
        raise CheckpointError("a storage is big-endian")
    storages = _Storages()
    value, position = read_pickle(data, position, vocabulary(storages.resolve), budget)
    keys, position = read_pickle(data, position, plain, budget)
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise CheckpointError("the keys of the storages are no list of strings")
    if len(set(keys)) != len(keys) or set(keys) != set(storages.by_key):
        raise CheckpointError(f"{len(keys)} storages follow, but the pickle names {len(storages.by_key)}, or others")
    for key in keys:
        position = _fill(storages.by_key[key], key, data, position)
    if position != len(data):
        raise CheckpointError(f"{len(data) - position} bytes follow the last storage")
    return value


def _fill(storage: Storage, key: str, data: memoryview, position: int) -> int:
    """Give a storage its bytes, a count and the elements at `position`; returns their end."""
    start = position + 8
    end = start + storage.count * storage.dtype.itemsize
    count = int.from_bytes(data[position:start], "little", signed=True)
    if start > len(data) or count != storage.count:
        raise CheckpointError(f"truncated or damaged: storage {key[:80]!r} has {count} elements, not {storage.count}")
    if end > len(data):
        raise CheckpointError(f"truncated: storage {key[:80]!r} is {end - start} bytes, {len(data) - start} follow")
    storage.data = data[start:end]
    return end


class _StorageVocabulary(Vocabulary):
    """A nested file holds a storage and nothing else."""

    def __init__(self, resolve: Callable[[Any], Storage]) -> None:
        self.resolve = resolve

    def name(self, dotted: str) -> Name:
        return storage_name(dotted) or super().name(dotted)

    def persistent(self, identifier: Any) -> Storage:
        return self.resolve(identifier)


def read_storage(data: memoryview, budget: Budget) -> Storage:
    """The storage that the bytes of a pickled tensor hold, as a view of them."""
    value = read_legacy(data, budget, _StorageVocabulary)
    if type(value) is not Storage:
        raise CheckpointError("bytes in place of a storage hold something else")
    return value
