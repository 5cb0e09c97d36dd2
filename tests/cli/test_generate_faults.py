"""edm-fast generate with bad input, too little memory, full disks and networks that overflow."""

from __future__ import annotations

import os
import re
import sys

import numpy as np
import pytest
import torch
from generate_command import TINY, pixels, run
from tiny_networks import tiny as tiny_network

import edm_fast
from edm_fast import images
from edm_fast.checkpoints import save_network
from edm_fast.cli.generate import generate
from edm_fast.networks import EDMPrecond
from edm_fast.plan import Prepared
from edm_fast.samplers import random_class


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--guidance", "inf"], "--guidance"),
        (["--guidance_interval", "3"], "--guidance_interval"),
        (["--guidance_interval", "3,2"], "--guidance_interval"),
        (["--guidance_interval", "0,nan"], "--guidance_interval"),
        (["--gnet", "nowhere.safetensors"], "--gnet"),
        (["--shard", "3/3"], "--shard"),
        (["--shard", "1"], "--shard"),
        (["--seeds", "1-"], "--seeds"),
        (["--seeds", "abc"], "--seeds"),
        (["--seeds", ""], "--seeds"),
        (["--seeds", "-5"], "--seeds"),
        (["--seeds", "9-3"], "--seeds"),
        (["--seeds", "0-99999999999"], "--seeds"),
        (["--seeds", str(2**64)], "--seeds"),
        (["--seeds", "9" * 5000], "--seeds"),
        (["--outdir", ""], "--outdir"),
        (["--rho", "0.001"], "rho"),
        (["--disc", "ve", "--sigma_min", "1e-200"], "sigma_min"),
        (["--class", "10"], "--class"),
        (["--class", "-1"], "--class"),
        (["--steps", "0"], "--steps"),
        (["--steps", "2.5"], "--steps"),
        (["--batch", "0"], "--batch"),
        (["--sigma_min", "0"], "--sigma_min"),
        (["--sigma_min", "nan"], "--sigma_min"),
        (["--sigma_max", "inf"], "--sigma_max"),
        (["--sigma_min", "5", "--sigma_max", "2"], "sigma_min"),
        (["--rho", "-1"], "--rho"),
        (["--S_churn", "-1"], "--S_churn"),
        (["--S_churn", "nan"], "--S_churn"),
        (["--S_noise", "-1"], "--S_noise"),
        (["--S_max", "nan"], "--S_max"),
        (["--rng", "mt19937"], "--rng"),
        (["--solver", "rk4"], "--solver"),
        (["--disc", "x"], "--disc"),
        (["--schedule", "x"], "--schedule"),
        (["--scaling", "x"], "--scaling"),
        (["--device", "tpu"], "--device"),
        (["--device", "mps"], "--device"),
        (["--dtype", "float16", "--device", "cpu"], "--dtype"),
        (["--dtype", "int8"], "--dtype"),
    ],
)
def test_bad_options_are_named_and_nothing_is_written(arguments, option, tmp_path):
    out = tmp_path / "out"
    assert option in run("--outdir", out, *arguments, expect=2)
    assert not out.exists()


def test_class_for_an_unconditional_network(tiny, tmp_path):
    assert "unconditional" in run("--network", tiny, "--outdir", tmp_path / "o", "--class", 0, expect=2)
    assert not (tmp_path / "o").exists()


def test_a_missing_checkpoint_is_named(tmp_path):
    assert "none.pkl" in run("--network", tmp_path / "none.pkl", "--outdir", tmp_path / "o", expect=2)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02}q\x00."])
def test_a_bad_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "net.pkl"
    path.write_bytes(content)
    assert "net.pkl" in run("--network", path, "--outdir", tmp_path / "o", expect=1)
    assert not (tmp_path / "o").exists()


def test_an_outdir_that_is_a_file(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    assert "--outdir" in run("--network", tiny, "--outdir", tmp_path / "file", expect=2)


def test_a_folder_that_cannot_be_made_is_named(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    output = run("--network", tiny, "--outdir", tmp_path / "file" / "below", "--seeds", 0, expect=1)
    assert "file" in output
    assert "cannot write" in output


def test_a_full_disk_is_named_and_keeps_what_is_written(tiny, tmp_path, monkeypatch):
    arguments = ["--network", tiny, "--outdir", tmp_path, "--seeds", "0-3", "--steps", 1, "--batch", 1]
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    assert "No space left on device" in run(*arguments, expect=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.png", "000001.png", "manifest.jsonl"]
    monkeypatch.undo()
    run(*arguments)
    assert len(list(tmp_path.glob("*.png"))) == 4


def test_networks_that_png_cannot_hold(tmp_path):
    save_network(EDMPrecond(img_resolution=8, img_channels=5, **TINY), tmp_path / "five.safetensors")
    assert "5 channels" in run("--network", tmp_path / "five.safetensors", "--outdir", tmp_path / "o", expect=1)


def test_a_batch_that_does_not_fit_is_halved_once_for_all(tiny, tmp_path, monkeypatch, caplog):
    arguments = ["--network", tiny, "--seeds", "0-19", "--steps", 2, "--batch", 8]
    run(*arguments, "--outdir", tmp_path / "whole")
    plan_run, batches = Prepared.run, []

    def limited(self, net_input, *rest):
        if len(net_input) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 800 bytes.")
        batches.append(len(net_input))
        return plan_run(self, net_input, *rest)

    monkeypatch.setattr(Prepared, "run", limited)
    run(*arguments, "--outdir", tmp_path / "halved")
    assert [record.getMessage().split("; ")[1] for record in caplog.records] == ["going on with 4", "going on with 2"]
    assert batches == [2] * 30
    for path in (tmp_path / "whole").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "halved" / path.name).read_bytes()
    monkeypatch.setattr(Prepared, "run", lambda self, *rest: torch.empty(2**55))
    output = run(*arguments, "--outdir", tmp_path / "none", expect=1)
    assert f"a single image does not fit in memory; {2**57} bytes more were needed" in output
    assert not list((tmp_path / "none").glob("*.png"))


def test_an_overflowing_network_names_the_seeds(tmp_path):
    net = EDMPrecond(img_resolution=8, img_channels=3, **TINY)
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, 1e30)
    save_network(net, tmp_path / "wild.safetensors")
    output = run("--network", tmp_path / "wild.safetensors", "--outdir", tmp_path / "o", "--seeds", "11", expect=1)
    assert "seeds 11" in output
    assert not list((tmp_path / "o").glob("*.png"))


def test_a_seed_that_breaks_does_not_keep_the_others_from_their_images(tmp_path):
    """Its class does; what the others get is what they get alone, and a rerun tries the one alone."""
    net = tiny_network("adm", label_dim=3)
    with torch.no_grad():
        net.model.map_label.weight[:, 2] = 1e38
    save_network(net, tmp_path / "net.safetensors")
    seeds = list(range(9))
    broken = {seed for seed in seeds if random_class(seed, 3) == 2}
    assert 1 < len(broken) < 9
    out = tmp_path / "out"
    arguments = [
        "--network",
        tmp_path / "net.safetensors",
        "--outdir",
        out,
        "--seeds",
        "0-8",
        "--steps",
        2,
        "--batch",
        3,
    ]
    for _ in range(2):
        output = run(*arguments, expect=1)
        for seed in broken:
            assert re.search(rf"seeds ([0-9, ]+, )?{seed}\b", output)
        assert {int(path.stem) for path in out.glob("*.png")} == set(seeds) - broken
    expected = images.to_bytes(edm_fast.sample(net, [0], [random_class(0, 3)], num_steps=2))
    assert np.array_equal(pixels(out / "000000.png"), expected[0])


def test_debug_overflow_reaches_the_sampler(tiny, tmp_path, monkeypatch):
    module = sys.modules[generate.callback.__module__]
    asked = []
    monkeypatch.setattr(
        module, "sample", lambda *rest, debug_overflow, **more: asked.append(debug_overflow) or torch.zeros(1, 3, 8, 8)
    )
    for number, options in enumerate(([], ["--debug-overflow"])):
        run("--network", tiny, "--outdir", tmp_path / str(number), "--seeds", 0, *options)
    assert asked == [False, True]
