"""The examples of the pages for those who come from elsewhere run, and the changed import is all that changes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner
from peer_k_diffusion import sampling_module
from PIL import Image
from tolerance import SAMPLER_FLOAT32, relative_error

import edm_fast
from edm_fast import images
from edm_fast.cli import main
from edm_fast.compat.nvlabs import StackedRandomGenerator, edm_sampler

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def run(source, **names):
    exec(compile(source, "example", "exec"), names)
    return names


def test_the_k_diffusion_page():
    names = run("".join(blocks("coming-from-k-diffusion.md", "python")))
    assert names["samples"].shape == (4, 3, 16, 16)
    assert bool(names["samples"].isfinite().all())


def test_the_k_diffusion_page_with_their_import():
    """The first example, with the line that its diff takes away in place of the one that it adds."""
    peer = sampling_module()
    source = blocks("coming-from-k-diffusion.md", "python")[0]
    [diff] = blocks("coming-from-k-diffusion.md", "diff")
    added = re.search(r"^\+(.*)$", diff, re.MULTILINE).group(1)
    assert added in source
    theirs = run(source.replace(added, ""), sampling=peer)["samples"]
    assert relative_error(run(source)["samples"], theirs) <= SAMPLER_FLOAT32


def test_the_nvlabs_page():
    page = "coming-from-nvlabs-edm.md"
    first, second, third = blocks(page, "python")
    diff, _ = blocks(page, "diff")
    assert re.search(r"^\+(.*)$", diff, re.MULTILINE).group(1) in first
    names = run(first + second)
    assert names["images"].shape == (4, 1, 8, 8)
    assert names["images"].dtype == torch.float64
    assert isinstance(names["net"], edm_fast.networks.Precond)
    assert names["faster"].shape == names["images"].shape
    assert run(third, edm_fast=edm_fast, net=names["net"], seeds=names["seeds"])["images"].shape == (4, 1, 8, 8)


def test_the_nvlabs_pages_command(tmp_path):
    """Its options, with the shipped model and fewer seeds: the tool's noise."""
    _, diff = blocks("coming-from-nvlabs-edm.md", "diff")
    command, options = re.search(r"^\+torchrun .* -m edm_fast (\w+) (.*)$", diff, re.MULTILINE).groups()
    given = dict(option.removeprefix("--").split("=") for option in options.split())
    assert given.pop("network") == "edm.pkl"
    given |= {"outdir": str(tmp_path), "seeds": "3-5", "steps": "4"}
    result = CliRunner().invoke(main, [command, *(f"--{name}={value}" for name, value in given.items())])
    assert result.exit_code == 0, result.output
    net = edm_fast.load()
    random = StackedRandomGenerator("cpu", [3, 4, 5])
    latents = random.randn([3, 1, 8, 8])
    labels = torch.eye(10)[random.randint(10, size=[3])]
    expected = images.to_bytes(edm_sampler(net, latents, labels, num_steps=4))
    for seed, image in zip((3, 4, 5), expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"{seed:06d}.png")), image[:, :, 0])
