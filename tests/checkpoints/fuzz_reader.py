"""Mutated checkpoints for the reader: python tests/checkpoints/fuzz_reader.py [--count N] [--seed S].

Every input must be read or be refused with CheckpointError: no other exception, nothing run, and no input that takes
long. Prints how many of each there were; fails with the input that breaks the rule.
"""

from __future__ import annotations

import argparse
import io
import pickle
import random
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from checkpoints.audit import nothing_runs
from checkpoints.edm_files import EasyDict, Persistent, dumps, torch_file
from checkpoints.opcodes import network, storage, storage_file, tensor

from edm_fast.checkpoints.contents import read_contents
from edm_fast.checkpoints.description import entry_rows
from edm_fast.errors import CheckpointError

_OPCODES = [value for name, value in vars(pickle).items() if name.isupper() and isinstance(value, bytes) and value]
_NUMBERS = [bytes([value]) * width for value in (0, 1, 0x7F, 0x80, 0xFF) for width in (1, 2, 4, 8)]
_SLOW = 5.0


def seeds() -> list[bytes]:
    """Well-formed files of every kind, small."""
    import numpy as np
    import torch
    from safetensors.torch import save

    weight = torch.arange(6.0).reshape(2, 3)
    state = {
        "_init_args": (8,),
        "_init_kwargs": EasyDict(img_channels=1, model_type="SongUNet", channel_mult=[1, 2]),
        "_parameters": {"weight": torch.nn.Parameter(weight)},
        "_modules": {"enc": torch.nn.ModuleDict()},
        "_non_persistent_buffers_set": {"a"},
    }
    value = {"ema": Persistent("EDMPrecond", state, "source"), "n": np.float32(0.5), "a": np.ones(2), "b": b"bytes"}
    files = [dumps(value, protocol, old=old) for protocol in (2, 3, 4, 5) for old in (False, True)]
    files += [network(tensor(storage())), storage_file(), save({"weight": weight}, {"format": "pt"})]
    files += [torch_file({"net": value["ema"], "weight": weight}, legacy) for legacy in (False, True)]
    return files


def mutated(generator: random.Random, files: list[bytes]) -> bytes:
    """A file with one to four changes: bytes, opcodes, sizes, cuts, repetitions, pieces of other files."""
    content = bytearray(generator.choice(files))
    for _ in range(generator.choice((1, 1, 2, 4))):
        at = generator.randrange(len(content) + 1)
        width = generator.choice((1, 1, 2, 4, 8, 30))
        kind = generator.randrange(7)
        if kind == 0 and at < len(content):
            content[at] = generator.randrange(256)
        elif kind == 1 and at < len(content):
            content[at] ^= 1 << generator.randrange(8)
        elif kind == 2:
            content[at : at + generator.choice((0, 1))] = generator.choice(_OPCODES)
        elif kind == 3:
            number = generator.choice(_NUMBERS)
            content[at : at + len(number)] = number
        elif kind == 4:
            del content[at : generator.choice((at + width, len(content)))]
        elif kind == 5:
            content[at:at] = content[at : at + width] * generator.choice((1, 2, 50))
        else:
            other = generator.choice(files)
            start = generator.randrange(len(other))
            content[at : at + generator.choice((0, width))] = other[start : start + width]
    return bytes(content)


def rearchived(generator: random.Random, content: bytes) -> bytes:
    """An archive whose pickle is mutated and whose checksums are right, so that the reader gets to the pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            part = old.read(info)
            new.writestr(info.filename, mutated(generator, [part]) if info.filename.endswith("data.pkl") else part)
    return buffer.getvalue()


def read(content: bytes) -> str:
    """What became of it: 'read', or 'refused'."""
    try:
        for _ in entry_rows(read_contents(memoryview(bytearray(content)))):
            pass
    except CheckpointError:
        return "refused"
    return "read"


def fuzz(count: int, seed: int = 0) -> Counter[str]:
    """Read `count` mutated files; an exception that is not CheckpointError fails, and shows the input."""
    generator = random.Random(seed)
    files = seeds()
    archives = [content for content in files if content[:2] == b"PK"]
    outcomes: Counter[str] = Counter()
    for content in files:  # as they are, they are read; this also imports what torch imports late
        outcomes[f"well-formed: {read(content)}"] += 1
    with nothing_runs() as events:
        for _ in range(count):
            archived = generator.randrange(8) == 0
            content = rearchived(generator, generator.choice(archives)) if archived else mutated(generator, files)
            start = time.process_time()
            try:
                outcomes[read(content)] += 1
            except Exception as error:
                raise AssertionError(f"{error!r} for {content!r}") from error
            taken = time.process_time() - start
            assert taken < _SLOW, f"{taken:.1f} s for {content!r}"
            assert not events, f"{events} for {content!r}"
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    outcomes = fuzz(arguments.count, arguments.seed)
    taken = time.perf_counter() - start
    print(f"{arguments.count} inputs in {taken:.1f} s: {dict(outcomes)}")  # noqa: T201


if __name__ == "__main__":
    main()
