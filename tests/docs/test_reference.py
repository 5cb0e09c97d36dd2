"""The reference has every public name, the navigation every page, and links between pages lead somewhere."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import edm_fast

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PACKAGE = Path(edm_fast.__file__).parent
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])


def public_modules() -> list[str]:
    """The modules that say what is public of them."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        if re.search(r"^__all__ =", path.read_text(), re.MULTILINE):
            parts = ("edm_fast", *path.relative_to(PACKAGE).with_suffix("").parts)
            found.append(".".join(parts).removesuffix(".__init__"))
    return sorted(found)


def resolved(path: str) -> Any:
    """The object that a dotted path names: a module, or what is in one."""
    names = path.split(".")
    for count in range(len(names), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(names[:count]))
        except ModuleNotFoundError:
            continue
        for name in names[count:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"{path} is no module, and in none")


@pytest.fixture(scope="module")
def reference() -> str:
    return "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))


@pytest.fixture(scope="module")
def documented(reference) -> list[Any]:
    """What the directives of the reference show; a path that names nothing fails here."""
    return [resolved(path) for path in re.findall(r"^::: (\S+)$", reference, re.MULTILINE)]


def test_public_modules_are_found():
    assert {"edm_fast", "edm_fast.ops", "edm_fast.training.data", "edm_fast.compat.nvlabs"} <= set(public_modules())


@pytest.mark.parametrize("module", public_modules())
def test_every_public_name_is_in_the_reference(module, reference, documented):
    """By a directive for the object itself, or in words, as `module.name`."""
    source = importlib.import_module(module)
    missing = [
        name
        for name in source.__all__
        if f"`{module}.{name}`" not in reference and not any(each is getattr(source, name) for each in documented)
    ]
    assert not missing, f"docs/reference has no {', '.join(missing)} of {module}"


def test_every_page_is_in_the_navigation():
    config = (ROOT / "mkdocs.yml").read_text()
    nav = re.search(r"^nav:\n(.*?)^\S", config, re.MULTILINE | re.DOTALL)
    assert nav is not None
    listed = re.findall(r"(\S+\.md)$", nav[1], re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} == set(listed)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    inside = [target for target in targets if target and not re.match(r"[a-z]+:", target)]
    missing = [target for target in inside if not (page.parent / target).exists()]
    assert not missing, f"{page.name} links to {', '.join(missing)}"
