"""What the page on training shows runs, in its order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import torch
from click.testing import CliRunner
from PIL import Image

import edm_fast
from edm_fast.cli import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "photos").mkdir()
    for index in range(20):
        pixels = torch.randint(256, [16, 16, 3], generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / f"{index}.png")
    for line in "".join(blocks("bash")).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "edm-fast"
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "samples").glob("*.png"))) == 4
    made = {path.name for path in (tmp_path / "colour").iterdir()}
    for pattern in re.findall(r"^\| `(\S+)` \|", PAGE.read_text(), re.MULTILINE):
        assert [name for name in made if re.fullmatch(re.escape(pattern).replace("…", ".+"), name)], pattern
    assert isinstance(edm_fast.load(tmp_path / "average.safetensors"), edm_fast.networks.Precond)


def test_the_python_example():
    names: dict = {}
    [source] = blocks("python")
    exec(compile(source, "example", "exec"), names)
    assert names["loss"].shape == (4, 3, 32, 32)
    assert names["made"].loss.shape == names["made"].sigma.shape == (4,)
    assert all(parameter.grad is not None for parameter in names["net"].parameters())
