"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# What stands beside the images in a folder of `edm-fast generate`.
MANIFEST = "manifest.jsonl"
GRID = "grid.png"


@contextmanager
def naming(target: Path, temporary: Path | None = None) -> Iterator[None]:
    """Errors of the system in the block that name no file, or the temporary one, name `target`.

    A failed write, unlike a failed open, does not know its file.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename is not None and str(error.filename) != str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` for binary writing; on success it is synced and takes the name `path`.

    On an exception the temporary file is removed and whatever stood at `path` stays as it was. OSError names `path`.
    """
    target = Path(path)
    # The process id in the name tells a leftover of a killed run from a file that is being written.
    name = target.parent / f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part"
    with naming(target, name):
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, target)
        except BaseException:
            name.unlink(missing_ok=True)
            raise


def remove_leftovers(paths: Iterable[Path], writing: bool = True) -> None:
    """Remove temporary files of `paths` whose process is gone, as after a kill.

    `writing`: this process may be at it in another thread. If not, its number on a file is that of a process that had
    it before, as in containers where every run is the first process.
    """
    targets = set(paths)
    for folder in {target.parent for target in targets}:
        for part in folder.glob(".*.part"):
            # .NAME.PID-RANDOM.part
            name, _, unique = part.name[1 : -len(".part")].rpartition(".")
            pid = unique.partition("-")[0]
            if folder / name in targets and pid.isdecimal() and not _alive(int(pid), writing):
                part.unlink(missing_ok=True)


def _alive(pid: int, ours: bool) -> bool:
    if pid == os.getpid():
        return ours
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
