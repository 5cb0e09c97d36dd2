"""The cases of `edm-fast bench`, at all sizes and with the samplers of other packages as peers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from peers import sampler_peers

from edm_fast.bench import Case, Entry


@pytest.mark.timeout(1200)
def test_case(entry: Entry, built: Case, versus: Callable[..., None]) -> None:
    built.peers.update(sampler_peers(entry))
    versus(entry.group, entry.name, built)
