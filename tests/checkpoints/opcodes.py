"""Pickles put together by hand, for what no pickler writes."""

from __future__ import annotations

import pickle
import struct

START = b"\x80\x04"
STOP = pickle.STOP
MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"


def pickled(*parts: bytes) -> bytes:
    return b"".join((START, *parts, STOP))


def text(value: str) -> bytes:
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def data(value: bytes) -> bytes:
    return pickle.BINBYTES + struct.pack("<I", len(value)) + value


def integer(value: int) -> bytes:
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(encoded)]) + encoded


def named(dotted: str) -> bytes:
    """A GLOBAL."""
    module, _, name = dotted.rpartition(".")
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def stack_named(dotted: str) -> bytes:
    module, _, name = dotted.rpartition(".")
    return text(module) + text(name) + pickle.STACK_GLOBAL


def tuple_of(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def list_of(*items: bytes) -> bytes:
    return pickle.EMPTY_LIST + pickle.MARK + b"".join(items) + pickle.APPENDS


def dict_of(**items: bytes) -> bytes:
    pairs = b"".join(text(key) + value for key, value in items.items())
    return pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + pickle.REDUCE


def counts(*values: int) -> bytes:
    return tuple_of(*map(integer, values))


def storage_file(count: int = 6, /, **changes: bytes) -> bytes:
    """A storage as torch.save writes it: five pickles, a count and the elements. `changes` replace parts of it."""
    identifier = tuple_of(text("storage"), named("torch.FloatStorage"), text("0"), text("cpu"), integer(count), b"N")
    parts = {
        "magic": b"\x80\x02" + MAGIC + STOP,
        "version": pickled(integer(1001)),
        "machine": pickled(dict_of(little_endian=pickle.NEWTRUE)),
        "value": pickled(identifier, pickle.BINPERSID),
        "keys": pickled(list_of(text("0"))),
        "count": struct.pack("<q", count),
        "content": bytes(4 * count),
        **changes,
    }
    return b"".join(parts.values())


def storage(*arguments: int, **changes: bytes) -> bytes:
    return call(named("torch.storage._load_from_bytes"), data(storage_file(*arguments, **changes)))


def tensor(
    of: bytes, offset: bytes = integer(0), size: bytes = counts(2, 3), stride: bytes = counts(3, 1), more: bytes = b""
) -> bytes:
    hooks = call(named("collections.OrderedDict"))
    arguments = (of, offset, size, stride, pickle.NEWFALSE, hooks)
    return call(named("torch._utils._rebuild_tensor_v2"), *arguments, *([more] if more else []))


def persistent(class_name: str = "EDMPrecond", /, **changes: bytes) -> bytes:
    meta = {
        "type": text("class"),
        "version": integer(6),
        "module_src": text("raise SystemExit"),
        "class_name": text(class_name),
        "state": pickle.EMPTY_DICT,
        **changes,
    }
    return call(named("torch_utils.persistence._reconstruct_persistent_obj"), dict_of(**meta))


def network(weight: bytes, **changes: bytes) -> bytes:
    """A file whose `ema` is a network of one tensor, which is as much as the reader looks at before it builds one."""
    arguments = dict_of(img_resolution=integer(8), img_channels=integer(1), model_type=text("SongUNet"))
    state = {
        "_init_args": pickle.EMPTY_TUPLE,
        "_init_kwargs": arguments,
        "_parameters": dict_of(weight=weight),
        "_buffers": pickle.EMPTY_DICT,
        "_modules": pickle.EMPTY_DICT,
        **changes,
    }
    return pickled(dict_of(ema=persistent(state=dict_of(**state))))
