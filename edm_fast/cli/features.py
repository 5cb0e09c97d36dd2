"""What the commands that measure images share: the reference, and what makes features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from edm_fast.evaluation import (
    Extractor,
    FolderImages,
    ImageSource,
    InceptionExtractor,
    TorchScriptExtractor,
    digits_features,
    digits_images,
)

_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


class FileOr(click.Path):
    """A path that exists, or one of some names, which stay text; './digits' is a path."""

    def __init__(self, *names: str, dir_okay: bool) -> None:
        super().__init__(exists=True, dir_okay=dir_okay, readable=True, path_type=Path)
        self.names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value in self.names else super().convert(value, param, ctx)


_OPTIONS = (
    click.option(
        "--extractor",
        type=FileOr("digits", "inception", dir_okay=False),
        default="digits",
        show_default=True,
        metavar="digits|inception|FILE",
        help="What makes features. A FILE is TorchScript, and its code is run: take it from those you trust.",
    ),
    click.option("--weights", type=_FILE, help="Inception's weights.  [default: where torch-fidelity keeps them]"),
    click.option("--rgb", is_flag=True, help="Repeat grey images to three channels (for inception always)."),
)

_Command = TypeVar("_Command", bound=Callable[..., Any])


def extractor_options(command: _Command) -> _Command:
    """Give the command --extractor, --weights and --rgb."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen_extractor(extractor: Path | str, weights: Path | None, device: torch.device) -> Extractor:
    """What --extractor names; ValueError or ImportError for one that cannot be had."""
    if extractor == "digits":
        return digits_features
    if extractor == "inception":
        return InceptionExtractor(weights, device)
    return TorchScriptExtractor(extractor, device)


def reference_images(ref: Path | str, rgb: bool) -> ImageSource | None:
    """The images of the reference; None if it is a file of statistics."""
    if ref == "digits":
        return digits_images(rgb)
    return FolderImages(ref, rgb) if Path(ref).is_dir() else None
