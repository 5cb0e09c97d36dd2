"""What one file may cost to read, whatever it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edm_fast.checkpoints.records import Instance, NumpyArray
from edm_fast.errors import CheckpointError

# ADM for ImageNet-64 (296 M parameters, 553 tensors) takes about 100,000 operations; a training state holds a few such.
# An operation makes at most about 100 bytes.
MAX_OPERATIONS = 1_000_000
MAX_TEXT_BYTES = 32 * 2**20
MAX_TENSORS = 20_000
MAX_MODULES = 20_000
MAX_DEPTH = 100
MAX_NAME = 200
MAX_RANK = 8


class Budget:
    """What is left; shared by a file and everything nested in it.

    `forget` lets go of the memory of what was read of the file, where that can be read again.
    """

    def __init__(self, file_bytes: int, forget: Callable[[], None] = lambda: None) -> None:
        self.forget = forget
        self.operations = MAX_OPERATIONS
        self.text_bytes = MAX_TEXT_BYTES
        self.tensors = MAX_TENSORS
        # Text that stands for bytes is copied when it is turned into them, each piece of the file once.
        self.copied_bytes = file_bytes

    def charge(self, what: str, amount: int = 1) -> None:
        """Take `amount` off one of the counts; CheckpointError when it is used up."""
        left = getattr(self, what) - amount
        setattr(self, what, left)
        if left < 0:
            raise CheckpointError(f"too much for a checkpoint: the limit on {what.replace('_', ' ')} is passed")


def check_nesting(root: Any) -> None:
    """CheckpointError if containers are nested more than MAX_DEPTH deep, or one contains itself."""
    heights: dict[int, int] = {}
    open_path = [(root, iter(_children(root)))]
    being_visited = {id(root)}
    while open_path:
        value, children = open_path[-1]
        for child in children:
            if id(child) in being_visited:
                raise CheckpointError("a container contains itself")
            if id(child) not in heights:
                if len(open_path) >= MAX_DEPTH:
                    raise CheckpointError(f"values are nested more than {MAX_DEPTH} deep")
                open_path.append((child, iter(_children(child))))
                being_visited.add(id(child))
                break
        else:
            heights[id(value)] = 1 + max((heights[id(child)] for child in _children(value)), default=0)
            if heights[id(value)] > MAX_DEPTH:
                raise CheckpointError(f"values are nested more than {MAX_DEPTH} deep")
            being_visited.discard(id(value))
            open_path.pop()


def _children(value: Any) -> list[Any]:
    """The containers directly inside a container. Keys and members of sets are strings and integers."""
    if isinstance(value, dict):
        inside: Any = value.values()
    elif isinstance(value, (list, tuple)):
        inside = value
    elif isinstance(value, Instance):
        inside = (value.state,)
    else:
        inside = ()
    return [item for item in inside if isinstance(item, (dict, list, tuple, Instance))]


def plain(value: Any) -> Any:
    """The value with lists for tuples and arrays, and dicts for their kin.

    CheckpointError for records that are no plain data (objects, tensors, long texts), for more than 8 levels and for
    more than 10,000 items.
    """
    return _Plain().convert(value, 8)


class _Plain:
    def __init__(self) -> None:
        # Values may occur many times in one another: what is small in the file need not be small written out.
        self.items = 10_000

    def convert(self, value: Any, depth: int) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            self.items -= 1
            return value
        if isinstance(value, NumpyArray) and value.value is not None:
            self.items -= value.value.size
            value = value.value.tolist() if self.items >= 0 else None
        if isinstance(value, (dict, list, tuple)):
            self.items -= 1 + len(value)
        if depth == 0 or self.items < 0:
            raise CheckpointError("more values stand where a few numbers, strings, lists or dicts are wanted")
        if isinstance(value, dict):
            return {key: self.convert(item, depth - 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.convert(item, depth - 1) for item in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value  # an array without dimensions
        raise CheckpointError(f"a {type(value).__name__} stands where numbers, strings, lists or dicts are wanted")
