"""A folder of generated images that survives any interruption.

The first line of `manifest.jsonl` holds the settings that all images of the folder are made with; a run with others is
refused. Every image is written to a temporary file, synced and renamed, and then noted there with its seed and the
SHA-256 of its bytes, so a later run makes only what is missing or damaged. Several ranks may share a folder: lines are
appended whole, and each rank makes its own seeds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edm_fast.files import GRID, MANIFEST, atomic_write, naming, remove_leftovers


class OtherSettingsError(ValueError):
    """The folder belongs to other settings, or it is not known to which."""


class ImageFolder:
    """Images named {seed:06d}.png under `outdir`, in folders of a thousand with `subdirs`.

    Args:
        settings: what the images depend on, by name.

    Raises OtherSettingsError if the folder belongs to other settings; no image is written then.
    """

    def __init__(self, outdir: Path, settings: Mapping[str, object], subdirs: bool) -> None:
        self.outdir = outdir
        self.subdirs = subdirs
        wanted = {name: str(value) for name, value in settings.items()}
        if self._settings() is None:
            if self._noted():
                raise OtherSettingsError(f"{outdir / MANIFEST} notes images without the settings that made them")
            outdir.mkdir(parents=True, exist_ok=True)
            self._append([json.dumps({"settings": wanted})])
        # Of two runs that begin at once the one whose line came first has the folder.
        there = self._settings()
        if there != wanted:
            difference = _difference(there or {}, wanted)
            raise OtherSettingsError(f"{outdir / MANIFEST} belongs to other settings, use another folder: {difference}")

    def path(self, seed: int) -> Path:
        folder = self.outdir / f"{seed - seed % 1000:06d}" if self.subdirs else self.outdir
        return folder / f"{seed:06d}.png"

    def missing(self, seeds: Sequence[int]) -> list[int]:
        """The seeds whose image is not there, or is not what was written.

        Removes the temporary files that a killed run left of them.
        """
        noted = self._noted()
        missing = [seed for seed in seeds if noted.get(seed) is None or noted[seed] != _hash_file(self.path(seed))]
        remove_leftovers([*map(self.path, missing), self.outdir / GRID], writing=False)
        return missing

    def write(self, seeds: Iterable[int], files: Iterable[bytes]) -> None:
        """Write a batch of PNG files, then note them."""
        lines = []
        for seed, data in zip(seeds, files, strict=True):
            path = self.path(seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(data)
            lines.append(json.dumps({"seed": seed, "sha256": hashlib.sha256(data).hexdigest()}))
        self._append(lines)

    def _append(self, lines: list[str]) -> None:
        manifest = self.outdir / MANIFEST
        # A line that an interruption cut short must not swallow the next one; empty lines are skipped by the reader.
        text = "\n" + "\n".join(lines) + "\n"
        descriptor = os.open(manifest, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            with naming(manifest):
                left = memoryview(text.encode())
                while left:  # a disk that is nearly full takes a part
                    left = left[os.write(descriptor, left) :]
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _records(self) -> Iterator[dict[str, Any]]:
        """The lines that make sense; an interruption may have cut some short."""
        manifest = self.outdir / MANIFEST
        if not manifest.exists():
            return
        for line in manifest.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                yield record

    def _settings(self) -> dict[str, str] | None:
        """Those of the folder, noted before its first image; None if there are none."""
        return next(
            (record["settings"] for record in self._records() if isinstance(record.get("settings"), dict)), None
        )

    def _noted(self) -> dict[int, str]:
        """seed → SHA-256 of the image that was written last."""
        noted: dict[int, str] = {}
        for record in self._records():
            seed, sha256 = record.get("seed"), record.get("sha256")
            if isinstance(seed, int) and isinstance(sha256, str):
                noted[seed] = sha256
        return noted


def _difference(there: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    names = [name for name in {**there, **wanted} if there.get(name) != wanted.get(name)]
    return ", ".join(
        f"{name} is {there.get(name, 'not set')} there and {wanted.get(name, 'not set')} here" for name in names
    )


def _hash_file(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
