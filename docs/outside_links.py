"""A hook of MkDocs: links out of docs/, which a repository's viewer follows, become plain text in the site."""

from __future__ import annotations

import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?:\.\./)+[^)]+\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page's source without links to files that the site does not have."""
    return markdown if "/" in page.file.src_uri else _LINK.sub(r"\1", markdown)
