"""edm-fast generate in many processes: which seeds and which device each takes."""

from __future__ import annotations

import sys

import pytest
import torch
from generate_command import run

from edm_fast.cli.generate import generate


@pytest.mark.parametrize(
    ("rank", "ranks", "named"),
    [
        ("2", None, "RANK"),
        ("2", "2", "RANK"),
        ("x", "2", "RANK"),
        ("0", "0", "RANK"),
        ("-1", "2", "RANK"),
        ("0", "two", "WORLD_SIZE"),
    ],
)
def test_ranks_that_make_no_sense_are_named(tiny, tmp_path, monkeypatch, rank, ranks, named):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if ranks is not None:
        monkeypatch.setenv("WORLD_SIZE", ranks)
    assert named in run("--network", tiny, "--outdir", tmp_path / "o", expect=2)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("asked", "local_rank", "given"),
    [("cpu", "1", "cpu"), ("cuda", None, "cuda:0"), ("cuda", "2", "cuda:2"), ("cuda:1", "2", "cuda:1")],
)
def test_a_rank_takes_its_own_device_unless_one_is_named(monkeypatch, asked, local_rank, given):
    """The rule alone: torch refuses to make a CUDA device without an index current."""
    module = sys.modules[generate.callback.__module__]
    monkeypatch.setattr(module, "usable_device", lambda name, device: torch.device(device))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert module._own_device(torch.device(asked)) == torch.device(given)


def test_ranks_share_the_seeds(tiny, tmp_path, monkeypatch):
    arguments = ["--network", tiny, "--outdir", tmp_path, "--seeds", "0-6", "--steps", 1]
    monkeypatch.setenv("WORLD_SIZE", "3")
    made = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        run(*arguments)
        made.append({path.name for path in tmp_path.glob("*.png")})
    assert [len(names) for names in made] == [3, 5, 7]
    run(*arguments, "--grid", expect=2)


def test_shards_share_the_seeds(tiny, tmp_path, monkeypatch):
    arguments = ["--network", tiny, "--outdir", tmp_path, "--seeds", "0-6", "--steps", 1]
    made = []
    for shard in ("0/3", "2/3", "1/3"):
        run(*arguments, "--shard", shard)
        made.append({int(path.stem) for path in tmp_path.glob("*.png")})
    assert made == [{0, 3, 6}, {0, 2, 3, 5, 6}, set(range(7))]
    run(*arguments, "--shard", "0/3", "--grid", expect=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "torchrun" in run(*arguments, "--shard", "0/3", expect=2)
