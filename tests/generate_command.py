"""edm-fast generate, called in this process, and what it wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image

from edm_fast.cli import main

TINY = {"model_type": "SongUNet", "model_channels": 16, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}


def run(*arguments, expect=0):
    """What the command prints; it must end with the status `expect`."""
    result = CliRunner().invoke(main, ["generate", *map(str, arguments)])
    assert result.exit_code == expect, result.output
    return result.output


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))
