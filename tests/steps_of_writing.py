"""The steps by which a process changes a folder, to be noted or to end at.

Between two of them a kill changes nothing that is left, so the states that kills can leave are those before each step,
within each write and after the last one.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import pathlib
import signal
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, BinaryIO

STEPS = ("mkdir", "open", "write", "fsync", "replace", "rename", "link", "unlink", "ftruncate")


def note(path: Path) -> None:
    """From now on this process appends the name of each step to the file `path`."""

    def step(name: str, real: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with path.open("a") as file:
            file.write(f"{name}\n")
        return real(*arguments, **options)

    _take(step)


def die(number: int, of: Collection[str] = STEPS, halfway: bool = False) -> None:
    """This process kills itself before step `number` of those named, counted from 0, or `halfway` through its write."""
    numbers = itertools.count()

    def step(name: str, real: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if name in of and next(numbers) == number:
            if halfway:
                descriptor, data = arguments
                real(descriptor, bytes(data)[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    _take(step)


def _take(step: Callable[..., Any]) -> None:
    """Have `step` stand in for every step; it gets the name and the function before the arguments."""
    # Python 3.10's paths keep functions of their own.
    holders = [os, *filter(None, [getattr(pathlib, "_NormalAccessor", None)])]
    for name in STEPS:
        real = getattr(os, name)
        for holder in holders:
            if getattr(holder, name, None) is real:
                setattr(holder, name, functools.partial(step, name, real))
    os.fdopen = _fdopen  # type: ignore[assignment]


class _Raw(io.FileIO):
    def write(self, data: Any) -> int:
        return os.write(self.fileno(), data)


def _fdopen(descriptor: int, mode: str) -> BinaryIO:
    """As os.fdopen for writing, but each of the file's writes is an os.write."""
    assert mode == "wb"
    return io.BufferedWriter(_Raw(descriptor, mode))
