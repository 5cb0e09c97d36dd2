"""The option type of a checkpoint: a file, or an https URL that is downloaded because it was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edm_fast.checkpoints.download import download, is_url


class NetworkFile(click.Path):
    """A readable file, as a path; for a URL the file in the download cache."""

    name = "file or url"

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False, readable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and is_url(value):
            try:
                value = download(value)
            except (ValueError, OSError) as error:
                self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)
