"""Measurements against what a user would run instead, in turns and only where the outputs agree.

`edm-fast bench` prints them as a table; benchmarks/suite in the source tree keeps them.
"""

from edm_fast.bench.registry import Entry, entries
from edm_fast.bench.turns import Case, MismatchError, Peer, Turns, keep_memory, machine

__all__ = ["Case", "Entry", "MismatchError", "Peer", "Turns", "entries", "keep_memory", "machine"]
