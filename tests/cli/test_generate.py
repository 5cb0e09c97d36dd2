"""edm-fast generate: the right files for the seeds, resumable, with errors that name what is wrong."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_networks import reference_of
from tiny_networks import tiny as tiny_network

import edm_fast
from edm_fast import images
from edm_fast.checkpoints import save_network
from edm_fast.cli import main
from edm_fast.cli.generate import generate
from edm_fast.cli.output import ImageFolder, OtherSettingsError
from edm_fast.networks import EDMPrecond
from edm_fast.plan import Prepared
from edm_fast.samplers import edm_sampler, random_class

TINY = {"model_type": "SongUNet", "model_channels": 16, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A checkpoint of an untrained colour network without classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("net") / "tiny.safetensors"
    save_network(EDMPrecond(img_resolution=8, img_channels=3, **TINY), path)
    return path


def run(*arguments, expect=0):
    result = CliRunner().invoke(main, ["generate", *map(str, arguments)])
    assert result.exit_code == expect, result.output
    return result.output


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


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


def test_grid_is_a_contact_sheet(tiny, tmp_path):
    run("--network", tiny, "--outdir", tmp_path, "--seeds", "0-4", "--steps", 1, "--grid")
    sheet = pixels(tmp_path / "grid.png")
    assert sheet.shape == (2 * 36 + 4, 3 * 36 + 4, 3)
    assert np.array_equal(sheet[4:36:4, 40:72:4], pixels(tmp_path / "000001.png"))


def test_bytes_are_truncated_not_rounded():
    values = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]).reshape(1, 1, 1, 7)
    assert images.to_bytes(values).reshape(-1).tolist() == [0, 0, 64, 128, 191, 255, 255]


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


def test_files_have_ordinary_permissions(tiny, tmp_path):
    mask = os.umask(0o027)
    try:
        run("--network", tiny, "--outdir", tmp_path, "--seeds", "0", "--steps", 1)
    finally:
        os.umask(mask)
    assert (tmp_path / "000000.png").stat().st_mode & 0o777 == 0o640


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
