"""The pages of docs/, and the fenced blocks in them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


class Block(NamedTuple):
    """A fenced block: its language, the file it is titled with ("" if none), its text, and the line it begins at."""

    language: str
    title: str
    text: str
    line: int


def blocks_of(page: str) -> list[Block]:
    """The blocks of docs/`page`, in order."""
    source = (DOCS / page).read_text()
    fence = re.compile(r'^```(\w*)(?: title="([^"]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
    return [
        Block(match[1], match[2] or "", match[3], source.count("\n", 0, match.start(3)) + 1)
        for match in fence.finditer(source)
    ]


@pytest.fixture(scope="session")
def blocks() -> Callable[[str], list[Block]]:
    """blocks("sample.md") are the page's blocks."""
    return blocks_of
