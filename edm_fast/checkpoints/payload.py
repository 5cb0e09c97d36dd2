"""Safetensors content whose bytes depend on nothing but the tensors and the metadata."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping

import torch
from safetensors.torch import save
from torch import Tensor

from edm_fast.files import atomic_write


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """crc32 over names and bytes of contiguous CPU tensors, in the order of the names, as 8 hexadecimal digits."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def write_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write contiguous CPU tensors atomically, with `metadata` and their `crc32` in the header.

    The library orders metadata at random; here they are sorted, so that equal content makes equal files.
    """
    content = memoryview(save(dict(tensors), dict(metadata)))
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8:end]))
    header["__metadata__"] = dict(sorted({**metadata, "crc32": checksum(tensors)}.items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(content[end:])
