"""edm-fast generate: the right files for the seeds, by every option."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from generate_command import TINY, pixels, run
from tiny_networks import reference_of
from tiny_networks import tiny as tiny_network

import edm_fast
from edm_fast import images
from edm_fast.checkpoints import save_network
from edm_fast.cli.generate import generate
from edm_fast.networks import EDMPrecond
from edm_fast.plan import Prepared
from edm_fast.samplers import edm_sampler, random_class


def test_files_are_the_seeds_and_hold_the_samples(tiny, tmp_path):
    out = tmp_path / "a" / "b"
    run("--network", tiny, "--outdir", out, "--seeds", "3,7-9,3", "--steps", 3, "--batch", 2)
    assert sorted(path.name for path in out.glob("*.png")) == ["000003.png", "000007.png", "000008.png", "000009.png"]
    expected = images.to_bytes(edm_fast.sample(edm_fast.load(tiny), [3, 7], num_steps=3, batch=2))
    assert np.array_equal(pixels(out / "000003.png"), expected[0])
    assert np.array_equal(pixels(out / "000007.png"), expected[1])


def test_subdirs_and_large_seeds(tiny, tmp_path):
    run("--network", tiny, "--outdir", tmp_path, "--seeds", f"5,1999,{2**64 - 1}", "--steps", 1, "--subdirs")
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")}
    assert names == {
        "000000/000005.png",
        "001000/001999.png",
        "18446744073709551000/18446744073709551615.png",
    }


def test_options_reach_the_sampler(tiny, tmp_path):
    options = {"S_churn": 4.0, "S_min": 0.1, "S_max": 20.0, "S_noise": 1.01, "sigma_min": 0.01, "sigma_max": 50.0}
    given = [text for name, value in options.items() for text in (f"--{name}", value)]
    choices = ["--solver", "euler", "--disc", "ve", "--schedule", "vp", "--scaling", "vp", "--rho", 5]
    run("--network", tiny, "--outdir", tmp_path, "--seeds", "4", "--steps", 3, *given, *choices)
    image = edm_fast.sample(
        edm_fast.load(tiny), [4], num_steps=3, solver="euler", discretization="ve", schedule="vp", scaling="vp", rho=5,
        **options,
    )  # fmt: skip
    assert np.array_equal(pixels(tmp_path / "000004.png"), images.to_bytes(image)[0])


def test_classes_by_request_and_by_seed(tmp_path):
    net = edm_fast.load()
    run("--outdir", tmp_path / "fixed", "--seeds", "0-2", "--class", 7, "--steps", 4)
    run("--outdir", tmp_path / "random", "--seeds", "0-2", "--steps", 4)
    fixed = images.to_bytes(edm_fast.sample(net, range(3), [7] * 3, num_steps=4))
    by_seed = images.to_bytes(
        edm_fast.sample(net, range(3), [random_class(seed, 10) for seed in range(3)], num_steps=4)
    )
    for seed in range(3):
        assert np.array_equal(pixels(tmp_path / "fixed" / f"{seed:06d}.png"), fixed[seed, :, :, 0])
        assert np.array_equal(pixels(tmp_path / "random" / f"{seed:06d}.png"), by_seed[seed, :, :, 0])


def test_every_option_of_nvlabs_tool_is_there_with_its_default():
    theirs = {
        "network": None, "outdir": None, "seeds": "0-63", "subdirs": None, "class": None, "batch": 64, "steps": 18,
        "sigma_min": None, "sigma_max": None, "rho": 7, "S_churn": 0, "S_min": 0, "S_max": float("inf"), "S_noise": 1,
        "solver": None, "disc": None, "schedule": None, "scaling": None,
    }  # fmt: skip
    ours = {option.opts[0].removeprefix("--"): option for option in generate.params}
    assert set(theirs) <= set(ours)
    for name, default in theirs.items():
        # What has no default there has ours here: the shipped model, a folder, and what edm_sampler does.
        assert default is None or ours[name].default == default
    assert [ours[name].default for name in ("solver", "disc", "schedule", "scaling")] == [
        "heun",
        "edm",
        "linear",
        "none",
    ]
    assert list(ours["disc"].type.choices) == ["edm", "vp", "ve", "iddpm"]
    assert list(ours["schedule"].type.choices) == ["linear", "vp", "ve"]
    assert list(ours["scaling"].type.choices) == ["none", "vp"]


@pytest.mark.parametrize("class_idx", [None, 2])
def test_the_noise_of_torch_generators(class_idx, tmp_path):
    """The tool's loop by hand: float32 latents, a class whether it is used or not, a float64 tensor per step."""
    net = tiny_network(label_dim=5)
    save_network(net, tmp_path / "net.safetensors")
    options = ["--rng", "torch", "--seeds", "4,4294967301", "--steps", 4, "--S_churn", 2, "--batch", 1]
    given = [] if class_idx is None else ["--class", class_idx]
    run("--network", tmp_path / "net.safetensors", "--outdir", tmp_path / "out", *options, *given)
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
    latents = torch.stack([torch.randn([3, 8, 8], generator=each) for each in generators])
    classes = [int(torch.randint(5, size=[], generator=each)) for each in generators]
    assert classes[0] != classes[1]

    def randn_like(x):
        return torch.stack([torch.randn(x.shape[1:], dtype=torch.float64, generator=each) for each in generators])

    labels = torch.eye(5)[classes if class_idx is None else [class_idx] * 2]
    expected = edm_sampler(net, latents, labels, randn_like=randn_like, num_steps=4, S_churn=2)
    for seed, image in zip((4, 4294967301), images.to_bytes(expected), strict=True):
        assert np.array_equal(pixels(tmp_path / "out" / f"{seed:06d}.png"), image)


def test_grid_is_a_contact_sheet(tiny, tmp_path):
    run("--network", tiny, "--outdir", tmp_path, "--seeds", "0-4", "--steps", 1, "--grid")
    sheet = pixels(tmp_path / "grid.png")
    assert sheet.shape == (2 * 36 + 4, 3 * 36 + 4, 3)
    assert np.array_equal(sheet[4:36:4, 40:72:4], pixels(tmp_path / "000001.png"))


def test_bytes_are_truncated_not_rounded():
    values = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]).reshape(1, 1, 1, 7)
    assert images.to_bytes(values).reshape(-1).tolist() == [0, 0, 64, 128, 191, 255, 255]


def test_guidance_without_a_class_and_with_another_network(tiny, tmp_path):
    other = tmp_path / "other.safetensors"
    torch.manual_seed(1)
    save_network(EDMPrecond(img_resolution=8, img_channels=3, **TINY), other)
    arguments = ["--seeds", "1,2", "--steps", 4, "--guidance", 2, "--guidance_interval", "0.3,20"]
    run("--outdir", tmp_path / "digits", "--class", 7, *arguments)
    options = {"num_steps": 4, "guidance": 2, "guidance_interval": (0.3, 20)}
    expected = images.to_bytes(edm_fast.sample(edm_fast.load(), [1, 2], [7, 7], **options))
    assert np.array_equal(pixels(tmp_path / "digits" / "000001.png"), expected[0, :, :, 0])
    run("--outdir", tmp_path / "colour", "--network", tiny, "--gnet", other, *arguments)
    expected = images.to_bytes(edm_fast.sample(edm_fast.load(tiny), [1, 2], gnet=edm_fast.load(other), **options))
    assert np.array_equal(pixels(tmp_path / "colour" / "000002.png"), expected[1])
    # The same again, nothing to do.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "colour").glob("*.png")}
    run("--outdir", tmp_path / "colour", "--network", tiny, "--gnet", other, *arguments)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "gnet is" in run("--outdir", tmp_path / "colour", "--network", tiny, "--gnet", tiny, *arguments, expect=2)


def test_guidance_of_an_unconditional_network_needs_another(tiny, tmp_path):
    assert "--guidance" in run("--network", tiny, "--outdir", tmp_path / "o", "--guidance", 2, expect=2)
    assert "gnet" in run("--outdir", tmp_path / "o", "--guidance", 2, "--gnet", tiny, expect=2)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("kind", ["ddpmpp", "adm"])
def test_images_are_the_reference_networks(kind, tmp_path, monkeypatch):
    """The command runs on a plan; its files are those of the reference path but for the rounding to grey levels."""
    net = tiny_network(kind)
    save_network(net, tmp_path / "net.safetensors")
    runs = []
    plan_run = Prepared.run
    monkeypatch.setattr(Prepared, "run", lambda self, *arguments: runs.append(1) or plan_run(self, *arguments))
    run("--network", tmp_path / "net.safetensors", "--outdir", tmp_path / "out", "--seeds", "0-4", "--steps", 3)
    assert len(runs) == 5
    runs.clear()
    labels = [random_class(seed, net.label_dim) for seed in range(5)]
    made = edm_fast.sample(reference_of(net), range(5), labels, num_steps=3, prepare=False)
    assert not runs
    for seed, expected in enumerate(images.to_bytes(made)):
        difference = pixels(tmp_path / "out" / f"{seed:06d}.png").astype(int) - expected
        assert np.abs(difference).max() <= 1
        assert len(np.unique(expected)) > 10
