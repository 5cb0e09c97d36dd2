"""The cases of `edm-fast bench`, at all sizes and with the samplers of other packages as peers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from peers import sampler_peers

from edm_fast.bench import Entry


@pytest.mark.timeout(1200)
def test_case(entry: Entry, full: bool, versus: Callable[..., None]) -> None:
    case = entry.case(compilers=full)
    case.peers.update(sampler_peers(entry))
    versus(entry.group, entry.name, case)
