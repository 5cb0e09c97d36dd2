"""Where the members of a torch archive lie in the file.

torch.save writes a zip file whose members are stored, not compressed, so that each is a range of the file. Anything
else that zip allows is refused: compression, encryption, several disks, comments, names that leave the archive, names
that come twice, and members that overlap or reach outside.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from dataclasses import dataclass

from edm_fast.errors import CheckpointError

SIGNATURE = b"PK\x03\x04"
MAX_MEMBERS = 20_000

_END = struct.Struct("<4s4H2LH")
_LOCATOR_64 = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 1
_EXTRA_64 = 1
_IN_EXTRA = 0xFFFFFFFF


@dataclass(frozen=True)
class Member:
    """A member's bytes, a view of the file, and the CRC-32 that the archive gives for them."""

    data: memoryview
    crc32: int


def check_crc32(name: str, data: memoryview, recorded: int) -> None:
    """CheckpointError if the bytes are not those that were written."""
    if zlib.crc32(data) != recorded:
        raise CheckpointError(f"damaged: the bytes of {name[:80]!r} do not have the checksum in the archive")


def zip_members(data: memoryview) -> dict[str, Member]:
    """Members of a zip file by name; CheckpointError, which says what is wrong, for what torch.save does not write."""
    count, directory, directory_end = _directory(data)
    if count > MAX_MEMBERS:
        raise CheckpointError(f"the archive has {count} members, more than {MAX_MEMBERS}")
    members: dict[str, Member] = {}
    ranges = []
    position = directory
    for _ in range(count):
        name, size, crc32, local, position = _entry(data, position, directory_end)
        if name in members:
            raise CheckpointError(f"the archive has two members named {name[:80]!r}")
        start = _content(data, name, local, directory)
        if size > directory - start:
            raise CheckpointError(f"truncated: {name[:80]!r} claims {size} bytes, {directory - start} follow")
        members[name] = Member(data[start : start + size], crc32)
        ranges.append((local, start + size))
    if position != directory_end:
        raise CheckpointError("damaged: the archive's directory does not hold as many members as it says")
    ranges.sort()
    if any(end > start for (_, end), (start, _) in itertools.pairwise(ranges)):
        raise CheckpointError("the archive has members that overlap")
    return members


def _unpack(layout: struct.Struct, data: memoryview, position: int, end: int, signature: bytes, what: str) -> tuple:
    if position < 0 or position + layout.size > end or data[position : position + 4] != signature:
        raise CheckpointError(f"truncated or damaged: the archive has no {what} at byte {position}")
    return layout.unpack_from(data, position)


def _directory(data: memoryview) -> tuple[int, int, int]:
    """(number of members, first byte and end of the directory)."""
    at = len(data) - _END.size
    end = _unpack(_END, data, at, len(data), b"PK\x05\x06", "end of a directory, the last thing in the file,")
    _, disk, first_disk, count_here, count, size, start, comment = end
    locator_at = at - _LOCATOR_64.size
    if locator_at >= 0 and data[locator_at : locator_at + 4] == b"PK\x06\x07":
        at = _LOCATOR_64.unpack_from(data, locator_at)[2]
        end = _unpack(_END_64, data, at, locator_at, b"PK\x06\x06", "zip64 directory's end")
        _, _, _, _, disk, first_disk, count_here, count, size, start = end
    if disk or first_disk or count_here != count or comment:
        raise CheckpointError("the archive has several parts, or a comment")
    if start + size != at:
        raise CheckpointError(f"damaged: the archive's directory is {size} bytes at byte {start}, but it ends at {at}")
    return count, start, start + size


def _entry(data: memoryview, position: int, end: int) -> tuple[str, int, int, int, int]:
    """(name, size, CRC-32, where its header lies, end of this entry)."""
    fields = _unpack(_ENTRY, data, position, end, b"PK\x01\x02", "entry of its directory")
    _, _, _, flags, method, _, _, crc32, packed, size, name_size, extra_size, comment_size, _, _, _, local = fields
    extra_at = position + _ENTRY.size + name_size
    after = extra_at + extra_size + comment_size
    if after > end:
        raise CheckpointError("truncated: an entry reaches outside of the archive's directory")
    name = _checked_name(data[position + _ENTRY.size : extra_at])
    if method or flags & _ENCRYPTED:
        raise CheckpointError(f"{name[:80]!r} is compressed or encrypted; torch.save only stores")
    wide = _wide_fields(data[extra_at : extra_at + extra_size])
    values = []
    for value in (size, packed, local):
        if value == _IN_EXTRA:
            if not wide:
                raise CheckpointError(f"damaged: {name[:80]!r} has no zip64 sizes")
            value = wide.pop(0)
        values.append(value)
    size, packed, local = values
    if size != packed:
        raise CheckpointError(f"{name[:80]!r} is stored, but its two sizes differ: {packed} and {size}")
    return name, size, crc32, local, after


def _checked_name(encoded: memoryview) -> str:
    try:
        name = str(encoded, "utf-8")
    except UnicodeDecodeError:
        raise CheckpointError("a member's name is not UTF-8") from None
    if "\\" in name or "\0" in name or any(part in ("", "..") for part in name.split("/")):
        raise CheckpointError(f"the member's name {name[:80]!r} leaves the archive")
    return name


def _wide_fields(extra: memoryview) -> list[int]:
    """The 64-bit numbers in an entry's extra fields."""
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        if kind == _EXTRA_64 and size % 8 == 0 and position + 4 + size <= len(extra):
            return list(struct.unpack_from(f"<{size // 8}Q", extra, position + 4))
        position += 4 + size
    return []


def _content(data: memoryview, name: str, local: int, end: int) -> int:
    """The first byte of a member's content."""
    fields = _unpack(_LOCAL, data, local, end, SIGNATURE, f"member {name[:80]!r}")
    name_size, extra_size = fields[-2:]
    name_at = local + _LOCAL.size
    if data[name_at : name_at + name_size] != name.encode() or fields[3]:
        raise CheckpointError(f"damaged: what the archive has for {name[:80]!r} is another member")
    return min(name_at + name_size + extra_size, end)
