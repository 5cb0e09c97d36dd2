"""The examples of the pages for those who come from elsewhere run, and the changed import is all that changes."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from peer_k_diffusion import sampling_module
from tolerance import SAMPLER_FLOAT32, relative_error

import edm_fast

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
    [diff] = blocks(page, "diff")
    assert re.search(r"^\+(.*)$", diff, re.MULTILINE).group(1) in first
    names = run(first + second)
    assert names["images"].shape == (4, 1, 8, 8)
    assert names["images"].dtype == torch.float64
    assert isinstance(names["net"], edm_fast.networks.Precond)
    assert names["faster"].shape == names["images"].shape
    assert run(third, edm_fast=edm_fast, net=names["net"], seeds=names["seeds"])["images"].shape == (4, 1, 8, 8)
