"""What opening a file costs, measured in a process of its own: python costs.py FILE... prints JSON.

For each file: seconds of processor time, bytes of memory above what the process had, and the error, if any.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from pathlib import Path

import edm_fast
from edm_fast.errors import CheckpointError

_STATUS = Path("/proc/self/status")


def peak_memory(reset: bool = False) -> int:
    """The most memory that the process held, in bytes; since the last reset, where the system can do that."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    if _STATUS.exists():
        [line] = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(path: str) -> dict[str, object]:
    before = peak_memory(reset=True)
    start = time.process_time()
    error = None
    try:
        edm_fast.load(path)
    except CheckpointError as caught:
        error = str(caught)
    seconds = time.process_time() - start
    return {"seconds": seconds, "bytes": peak_memory() - before, "error": error}


def loop_seconds() -> float:
    """Processor time of a million steps of a loop: how slow this machine is."""
    start = time.process_time()
    total = 0
    for index in range(1_000_000):
        total += index & 7
    return time.process_time() - start


if __name__ == "__main__":
    edm_fast.load()
    print(json.dumps({"loop": loop_seconds(), **{path: measure(path) for path in sys.argv[1:]}}))  # noqa: T201
