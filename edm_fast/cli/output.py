"""A folder of generated images that survives any interruption.

Every image is written to a temporary file, synced and renamed, and then noted in `manifest.jsonl`: a line with its
seed, the SHA-256 of its bytes and a digest of the settings that made it. A later run with the same settings makes only
what is missing or damaged. Several ranks may share a folder: lines are appended whole, and each rank makes its own
seeds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from edm_fast.files import atomic_write, remove_leftovers

MANIFEST = "manifest.jsonl"
GRID = "grid.png"


class ImageFolder:
    """Images named {seed:06d}.png under `outdir`, in folders of a thousand with `subdirs`."""

    def __init__(self, outdir: Path, settings: dict[str, object], subdirs: bool) -> None:
        self.outdir = outdir
        self.subdirs = subdirs
        encoded = json.dumps(settings, sort_keys=True).encode()
        self.settings = hashlib.sha256(encoded).hexdigest()[:16]
        outdir.mkdir(parents=True, exist_ok=True)

    def path(self, seed: int) -> Path:
        folder = self.outdir / f"{seed - seed % 1000:06d}" if self.subdirs else self.outdir
        return folder / f"{seed:06d}.png"

    def missing(self, seeds: Sequence[int]) -> list[int]:
        """The seeds whose image is not there, was made with other settings, or is not what was written.

        Removes the temporary files that a killed run left of them.
        """
        noted = self._noted()
        missing = [seed for seed in seeds if noted.get(seed) is None or noted[seed] != _hash_file(self.path(seed))]
        remove_leftovers([*map(self.path, missing), self.outdir / GRID])
        return missing

    def write(self, seeds: Iterable[int], files: Iterable[bytes]) -> None:
        """Write a batch of PNG files, then note them."""
        lines = []
        for seed, data in zip(seeds, files, strict=True):
            path = self.path(seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(data)
            record = {"seed": seed, "sha256": hashlib.sha256(data).hexdigest(), "settings": self.settings}
            lines.append(json.dumps(record))
        self._append(lines)

    def _append(self, lines: list[str]) -> None:
        manifest = self.outdir / MANIFEST
        # A line that an interruption cut short must not swallow the next one; empty lines are skipped by the reader.
        text = "\n" + "\n".join(lines) + "\n"
        descriptor = os.open(manifest, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, text.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _noted(self) -> dict[int, str]:
        """seed → SHA-256, for images made with these settings. Later runs may have overwritten them: the hash tells."""
        noted: dict[int, str] = {}
        manifest = self.outdir / MANIFEST
        if not manifest.exists():
            return noted
        for line in manifest.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
                seed, sha256, settings = record["seed"], record["sha256"], record["settings"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if isinstance(seed, int) and isinstance(sha256, str) and settings == self.settings:
                noted[seed] = sha256
        return noted


def _hash_file(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
