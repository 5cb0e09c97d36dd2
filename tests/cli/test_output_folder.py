"""The folder of edm-fast generate: resumable, owned by one set of settings, with whole files only."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from generate_command import TINY, run

from edm_fast.checkpoints import save_network
from edm_fast.cli.output import ImageFolder, OtherSettingsError
from edm_fast.networks import EDMPrecond


def test_a_finished_folder_is_left_alone(tiny, tmp_path):
    arguments = ["--network", tiny, "--outdir", tmp_path, "--seeds", "0-5", "--steps", 2]
    run(*arguments)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("*.png")}
    run(*arguments, "--batch", 4)
    assert before == {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("*.png")}


def test_missing_and_damaged_images_alone_are_made_again(tiny, tmp_path):
    arguments = ["--network", tiny, "--outdir", tmp_path, "--seeds", "0-5", "--steps", 2, "--batch", 1]
    run(*arguments)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    (tmp_path / "000002.png").unlink()
    (tmp_path / "000004.png").write_bytes(before["000004.png"][:-5])
    with (tmp_path / "manifest.jsonl").open("a") as manifest:
        manifest.write('{"seed": 3, "sha')  # a line that an interruption cut short
    run(*arguments)
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    touched = {name for name in before if (tmp_path / name).stat().st_mtime_ns != times[name]}
    assert touched == {"000002.png", "000004.png"}
    run(*arguments)
    noted = [json.loads(line)["seed"] for line in (tmp_path / "manifest.jsonl").read_text().splitlines()
             if line.startswith('{"seed') and line.endswith("}")]  # fmt: skip
    assert sorted(noted) == [0, 1, 2, 2, 3, 4, 4, 5]


def test_temporary_files_of_a_killed_run_go_with_their_image(tiny, tmp_path):
    """Those of other seeds stay, which another rank may be writing, and those of a process that is alive."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    alive = f".000000.png.{os.getppid()}-12ab34cd.part"
    ours = f".000000.png.{os.getpid()}-12ab34cd.part"  # of a process that had our number
    for name in (ours, f".000001.png.{gone.pid}-12ab34cd.part", ".000009.png.1-12ab34cd.part", alive):
        (tmp_path / name).write_bytes(b"half")
    run("--network", tiny, "--outdir", tmp_path, "--seeds", "0,1", "--steps", 1)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"000000.png", "000001.png", "manifest.jsonl", ".000009.png.1-12ab34cd.part", alive}


def test_other_settings_in_the_same_folder_are_refused(tiny, tmp_path):
    other = EDMPrecond(img_resolution=8, img_channels=3, **TINY)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_network(other, tmp_path / "other.safetensors")
    out = tmp_path / "out"
    arguments = ["--network", tiny, "--outdir", out, "--seeds", "0"]
    run(*arguments, "--steps", 2)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    for more, difference in (
        (["--steps", 3], "num_steps is 2 there and 3 here"),
        (["--steps", 2, "--S_churn", 1], "S_churn is 0.0 there and 1.0 here"),
        (["--steps", 2, "--rng", "torch"], "rng is philox there and torch here"),
        (["--steps", 2, "--subdirs"], "subdirs is False there and True here"),
        (["--steps", 2, "--network", tmp_path / "other.safetensors"], "network is"),
        (["--steps", 2, "--gnet", tiny, "--guidance", 2], "guidance is not set there and 2.0 here"),
    ):
        output = run(*arguments, *more, "--seeds", "0,1", expect=2)
        assert "--outdir" in output
        assert difference in output
    assert before == {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}


def test_of_two_runs_that_begin_at_once_the_first_line_has_the_folder(tmp_path):
    first = ImageFolder(tmp_path, {"steps": 2}, subdirs=False)
    with (tmp_path / "manifest.jsonl").open("a") as manifest:
        manifest.write('{"settings": {"steps": "3"}}\n')  # of a run that looked before the first had written
    first.write([5], [b"x"])
    assert ImageFolder(tmp_path, {"steps": 2}, subdirs=False).missing([5, 6]) == [6]
    with pytest.raises(OtherSettingsError, match="steps is 2 there and 3 here"):
        ImageFolder(tmp_path, {"steps": 3}, subdirs=False)


def test_an_interrupted_run_leaves_whole_files_and_the_next_one_completes_them(tiny, tmp_path):
    """By Ctrl-C; test_interrupted.py has kills."""
    arguments = ["--network", tiny, "--seeds", "0-199", "--steps", 2, "--batch", 2]
    run(*arguments, "--outdir", tmp_path / "whole")
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "edm_fast", "generate", *map(str, arguments), "--outdir", str(out)]
    # A shell in the background hands on that SIGINT is ignored.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, preexec_fn=heed)
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.png"))) < 6 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    partial = list(out.glob("*.png"))
    assert 6 <= len(partial) < 200
    for path in partial:
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    run(*arguments, "--outdir", out)
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in out.iterdir()} == names
    for name in names - {"manifest.jsonl"}:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_lines_of_the_manifest_that_make_no_sense_are_passed_over(tiny, tmp_path):
    arguments = ["--network", tiny, "--outdir", tmp_path, "--seeds", "0", "--steps", 1]
    run(*arguments)
    lines = ['{"seed": [1], "sha256": ""}', '{"settings": 7}', "[" * 100_000, "7", "null", '"', '{"seed": 0}']
    with (tmp_path / "manifest.jsonl").open("a") as manifest:
        manifest.write("\n".join(lines))
    before = (tmp_path / "000000.png").stat().st_mtime_ns
    run(*arguments)
    assert (tmp_path / "000000.png").stat().st_mtime_ns == before


def test_a_manifest_that_the_disk_takes_by_halves_is_whole(tiny, tmp_path, monkeypatch):
    arguments = ["--network", tiny, "--outdir", tmp_path, "--seeds", "0-3", "--steps", 1]
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[: (len(data) + 1) // 2]))
    run(*arguments)
    monkeypatch.undo()
    records = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines() if line]
    assert "settings" in records[0]
    assert [record["seed"] for record in records[1:]] == [0, 1, 2, 3]


def test_noted_images_without_settings_are_not_taken_over(tiny, tmp_path):
    arguments = ["--network", tiny, "--outdir", tmp_path, "--seeds", "0-3", "--steps", 1]
    run(*arguments)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("\n".join(line for line in manifest.read_text().splitlines() if "settings" not in line))
    assert "without the settings" in run(*arguments, expect=2)


def test_files_have_ordinary_permissions(tiny, tmp_path):
    mask = os.umask(0o027)
    try:
        run("--network", tiny, "--outdir", tmp_path, "--seeds", "0", "--steps", 1)
    finally:
        os.umask(mask)
    assert (tmp_path / "000000.png").stat().st_mode & 0o777 == 0o640
