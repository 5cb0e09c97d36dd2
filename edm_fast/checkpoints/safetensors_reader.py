"""Reading a safetensors file: a JSON header that says where each tensor lies, then the tensors without gaps."""

from __future__ import annotations

import json
import math
from typing import Any

import torch

from edm_fast.checkpoints.budget import MAX_TENSORS
from edm_fast.checkpoints.records import Storage, StoredTensor
from edm_fast.errors import CheckpointError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# A header of the largest networks is under 100 KB; a hostile one must not cost memory before it is refused.
_MAX_HEADER_BYTES = 2 * 2**20


def is_safetensors(data: memoryview) -> bool:
    """Whether bytes begin as a safetensors file does."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= _MAX_HEADER_BYTES


def read_safetensors(data: memoryview) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """Return (metadata, tensors by name), the tensors as views of `data`; CheckpointError says what is wrong."""
    if len(data) < 9:
        raise CheckpointError(f"truncated: {len(data)} bytes are fewer than the header of a safetensors file")
    if not is_safetensors(data):
        raise CheckpointError(f"not a safetensors file (its first 9 bytes are {bytes(data[:9])!r})")
    start = 8 + int.from_bytes(data[:8], "little")
    if start > len(data):
        raise CheckpointError(f"truncated: the header claims {start - 8} bytes, but the file has {len(data)}")
    try:
        header = json.loads(str(data[8:start], "utf-8"), object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"damaged: the header of this safetensors file is no JSON: {str(error)[:80]}") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(type(value) is not str for value in metadata.values()):
        raise CheckpointError("damaged: the metadata of this safetensors file are no strings by name")
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"the file has {len(header)} tensors, more than {MAX_TENSORS}")
    tensors, ranges = {}, []
    for name, entry in header.items():
        dtype, shape, (begin, end) = _entry(name, entry)
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise CheckpointError(f"damaged: {name[:80]!r} is {end - begin} bytes, but {dtype} {shape} is not")
        stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        content = data[start + begin : start + end]
        tensors[name] = StoredTensor(Storage(dtype, math.prod(shape), content), 0, tuple(shape), stride)
        ranges.append((begin, end))
    ranges.sort()
    ends = [0, *(end for _, end in ranges)]
    if [begin for begin, _ in ranges] != ends[:-1]:
        raise CheckpointError("damaged: the tensors overlap, or there are gaps between them")
    if ends[-1] != len(data) - start:
        raise CheckpointError(f"truncated or damaged: the tensors are {ends[-1]} bytes, {len(data) - start} are there")
    return metadata, tensors


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key comes twice")
    return result


def _entry(name: str, entry: Any) -> tuple[torch.dtype, list[int], list[int]]:
    """(dtype, shape, first byte and end) of a tensor."""
    found: dict[str, Any] = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = found.get("dtype"), found.get("shape", 0), found.get("data_offsets", 0)
    good = type(dtype) is str and dtype in _DTYPES and _are_counts(shape, 8) and _are_counts(offsets, 2)
    if not good or dtype is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"damaged: the header says {str(entry)[:80]} of {name[:80]!r}")
    return _DTYPES[dtype], shape, offsets


def _are_counts(values: Any, most: int) -> bool:
    return isinstance(values, list) and len(values) <= most and all(type(v) is int and 0 <= v < 2**48 for v in values)
