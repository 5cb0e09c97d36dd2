"""The list of deliberate bugs fits the tree. That tests notice the bugs, tests/mutations/run.py proves."""

from __future__ import annotations

from collections import Counter

import pytest
from mutations.catalogue import FOLDER, ROOT, Mutation, load

MUTATIONS = load()


def test_there_are_at_least_forty() -> None:
    assert len(MUTATIONS) >= 40


def test_names_are_unique() -> None:
    counted = Counter(mutation.name for mutation in MUTATIONS)
    assert [name for name, count in counted.items() if count > 1] == []


def test_no_bug_stands_twice_in_the_list() -> None:
    counted = Counter((mutation.file, mutation.search, mutation.replace) for mutation in MUTATIONS)
    assert [bug for bug, count in counted.items() if count > 1] == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_bug_fits_the_tree(mutation: Mutation) -> None:
    assert mutation.occurrences() == mutation.count, f"{mutation.file} changed: adapt {mutation.area}.toml"
    assert mutation.search != mutation.replace
    assert mutation.tests
    for test in mutation.tests:
        path, *names = test.split("::")
        source = ROOT / path
        assert source.is_file(), f"{path} is not there: adapt {mutation.area}.toml"
        for name in names:
            function = name.partition("[")[0]
            assert f"def {function}(" in source.read_text(encoding="utf-8"), f"{path} has no {function}"


def test_python_needs_no_compiler_and_kernels_do() -> None:
    for mutation in MUTATIONS:
        assert (mutation.rebuild == "python") == mutation.file.endswith(".py"), mutation.name


def test_the_page_of_results_names_every_bug() -> None:
    page = (FOLDER / "RESULTS.md").read_text(encoding="utf-8")
    assert [mutation.name for mutation in MUTATIONS if f"**{mutation.name}**" not in page] == []
