"""What the pages show runs: the Python and the commands of a page in order, in a folder of their own."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from edm_fast.cli import main

DOCS = Path(__file__).resolve().parents[2] / "docs"
# Their tests lie with the code that they show: tests/compat, tests/training, tests/evaluation and tests/benchmarks.
ELSEWHERE = {"training.md", "evaluation.md", "benchmarks.md", *(page.name for page in DOCS.glob("coming-from-*.md"))}
PAGES = sorted({page.name for page in DOCS.glob("*.md")} - ELSEWHERE)


def run_commands(text: str) -> None:
    """`edm-fast` commands, a line each; they must succeed."""
    for line in text.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line)
        assert program == "edm-fast", f"the page's commands are those of edm-fast, and this is {line!r}"
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}"


@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs(page, blocks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for block in blocks(page):
        if block.title:
            continue  # a file of the repository; see test_extend_op.py
        if block.language == "python":
            # Tracebacks then show the page's own lines.
            exec(compile("\n" * (block.line - 1) + block.text, str(DOCS / page), "exec"), names)
        elif block.language == "bash":
            run_commands(block.text)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_that_do_not_run_are_few(page, blocks):
    found = blocks(page)
    assert len(found) == len(re.findall(r"^```\w", (DOCS / page).read_text(), re.MULTILINE)), "a fence was not read"
    assert {block.language for block in found} <= {"python", "bash", "text", "mermaid", "cpp", "diff"}
    assert sum(block.language == "text" for block in found) <= 1
    assert all(block.title for block in found if block.language in ("cpp", "diff")), "nothing would test this block"
