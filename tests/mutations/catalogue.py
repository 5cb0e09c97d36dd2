"""The list of deliberate bugs: what each changes in the sources, and which tests must notice it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings this
    import tomli as tomllib  # type: ignore[no-redef]

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]

# What must be compiled after a change, in the order in which the runner takes them: the changes to Python come first
# since they want both binaries unchanged.
REBUILDS = ("python", "simt", "extension")


@dataclass(frozen=True)
class Mutation:
    """One bug.

    Attributes:
        name: unique, in words with hyphens.
        area: the name of the TOML file without its suffix.
        bug: what is wrong, for people.
        file: the source, relative to the repository.
        search, replace: text in it and what takes its place, `count` times.
        rebuild: one of REBUILDS.
        tests: node ids or files, the fewest that notice.
        select: pytest's -k expression, or "" for all of `tests`.
    """

    name: str
    area: str
    bug: str
    file: str
    search: str
    replace: str
    rebuild: str
    tests: tuple[str, ...]
    select: str = ""
    count: int = 1

    def occurrences(self, root: Path = ROOT) -> int:
        """How often the text to replace stands in the file."""
        path = root / self.file
        return path.read_text(encoding="utf-8").count(self.search) if path.is_file() else 0

    def applied(self, source: str) -> str:
        """The source with the bug."""
        return source.replace(self.search, self.replace)


def load(folder: Path = FOLDER) -> list[Mutation]:
    """All mutations, by area and as they stand in the files. ValueError names an entry that does not fit."""
    mutations = []
    for path in sorted(folder.glob("*.toml")):
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutation"]:
            mutations.append(_mutation(path.stem, entry))
    return mutations


def _mutation(area: str, entry: dict[str, Any]) -> Mutation:
    try:
        mutation = Mutation(area=area, **{**entry, "tests": tuple(entry["tests"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{area}.toml: {entry.get('name', 'an entry without a name')}: {error}") from None
    if mutation.rebuild not in REBUILDS:
        raise ValueError(f"{area}.toml: {mutation.name}: rebuild is {mutation.rebuild!r}; it is one of {REBUILDS}")
    return mutation


def in_running_order(mutations: Iterable[Mutation]) -> list[Mutation]:
    """By rebuild, and by file, so that one source is compiled again and again and not all in turn."""
    return sorted(mutations, key=lambda mutation: (REBUILDS.index(mutation.rebuild), mutation.file))
