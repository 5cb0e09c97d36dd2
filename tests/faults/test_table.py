"""The table of README.md: all faults are there, and every test that it names exists."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
# In the order of the table, by a word that stands in that row alone.
FAULTS = [
    *("`num_steps` is 1", "σ_min > σ_max", "√2-1", "class labels", "wrong channels", "empty batch", "mixed device"),
    *("out of memory", "low precision", "interrupted generation", "a rank dies", "GPU too old", "CUDA graph"),
    *("several devices", "fork after OpenMP", "full disk", "hostile checkpoint"),
]


def rows() -> list[list[str]]:
    """The cells of the table, without its head."""
    lines = [line for line in (HERE / "README.md").read_text().splitlines() if line.startswith("|")]
    head, rule, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert head == ["Fault", "Required behaviour", "Tests"]
    assert set(rule) == {"---"}
    return body


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@functools.cache
def functions_of(path: Path) -> frozenset[str]:
    """The test functions of a file, none of which hides another of its name."""
    names = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    found = [name for name in names if name.startswith("test_")]
    assert len(found) == len(set(found)), f"{path} has two tests of one name"
    return frozenset(found)


def test_every_fault_has_its_row():
    assert len(FAULTS) == 17
    assert [fault in row[0] for fault, row in zip(FAULTS, rows(), strict=True)] == [True] * 17


@pytest.mark.parametrize("fault", FAULTS)
def test_every_test_of_a_fault_exists(fault):
    [(_, behaviour, cell)] = [row for row in rows() if fault in row[0]]
    assert behaviour
    names = named(cell)
    assert names
    assert len(names) == len(set(names))
    for name in names:
        path, _, function = name.partition("::")
        assert (TESTS / path).is_file(), f"there is no {path}"
        assert function in functions_of(TESTS / path), f"{path} has no {function}"


def test_every_test_of_this_folder_but_the_tables_is_named_or_beside_one_that_is():
    """A file of this folder that no row names would be a claim about no fault."""
    files = {name.partition("::")[0] for row in rows() for name in named(row[2])}
    assert {f"faults/{path.name}" for path in HERE.glob("test_*.py")} - {"faults/test_table.py"} <= files
