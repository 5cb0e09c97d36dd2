"""Disks that are full, places that cannot be written, and data that are no images: named, and nothing whole is lost.

A disk is full where a file may not grow beyond a size, which the kernel enforces in the middle of a write.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import resource
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from forked_commands import Commands, forked_commands
from generate_command import TINY
from PIL import Image

import edm_fast
from edm_fast.checkpoints import save_network
from edm_fast.cli import main
from edm_fast.files import atomic_write
from edm_fast.networks import EDMPrecond

TRAIN = ["--duration", "0.016", "--batch", "8", "--channels", "16", "--no-progress"]


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with forked_commands() as made:
        yield made


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A network whose images, some kilobytes of noise, are larger than what else is written beside them."""
    path = tmp_path_factory.mktemp("net") / "large.safetensors"
    torch.manual_seed(0)
    save_network(EDMPrecond(img_resolution=96, img_channels=3, **TINY), path)
    return path


def full_after(size: int) -> functools.partial[None]:
    return functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))


def invoke(*arguments: object, expect: int) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == expect, result.output
    return result.output


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_disk_that_fills_up_within_an_image_leaves_no_part_of_it(commands, large, tmp_path):
    out = tmp_path / "out"
    settings = ["generate", "--network", large, "--outdir", out, "--steps", 1]
    assert commands.start(*settings, "--seeds", "0-1").status() == 0
    before = contents(out)
    assert min(len(before[name]) for name in ("000000.png", "000001.png")) > 4096 > len(before["manifest.jsonl"])
    run = commands.start(*settings, "--seeds", "0-5", first=full_after(4096))
    assert run.status() == 1
    assert f"Error: cannot write {out / '000002.png'}: File too large" in run.output
    assert "Traceback" not in run.output
    assert contents(out) == before
    assert commands.start(*settings, "--seeds", "0-5").status() == 0
    assert len(list(out.glob("*.png"))) == 6


def test_a_disk_that_fills_up_within_the_manifest_loses_no_image(commands, large, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    settings = ["generate", "--network", large, "--steps", 1, "--batch", 2]
    assert commands.start(*settings, "--outdir", whole, "--seeds", "0-3").status() == 0
    assert commands.start(*settings, "--outdir", out, "--seeds", "0-1").status() == 0
    # Larger than an image, and so small that the next line of the manifest does not fit.
    padding = b"\n" * 16_000
    with (out / "manifest.jsonl").open("ab") as manifest:
        manifest.write(padding)
    run = commands.start(
        *settings, "--outdir", out, "--seeds", "0-3", first=full_after((out / "manifest.jsonl").stat().st_size + 20)
    )
    assert run.status() == 1
    assert f"cannot write {out / 'manifest.jsonl'}: File too large" in run.output
    assert commands.start(*settings, "--outdir", out, "--seeds", "0-3").status() == 0
    images = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert images == {path.name: path.read_bytes() for path in whole.glob("*.png")}


def test_training_on_a_full_disk_names_the_file_and_keeps_the_old_state(commands, tmp_path):
    out = tmp_path / "out"
    assert commands.start("train", "--outdir", out, *TRAIN).status() == 0
    before = (out / "training-state.safetensors").read_bytes()
    longer = ["--duration", "0.032", *TRAIN[2:], "--no-resume"]
    run = commands.start("train", "--outdir", out, *longer, first=full_after(100_000))
    assert run.status() == 1
    assert f"File too large: '{out / 'training-state.safetensors'}'" in run.output
    assert "Traceback" not in run.output
    assert (out / "training-state.safetensors").read_bytes() == before
    assert not list(out.glob(".*.part"))


def test_converting_to_a_full_disk_names_the_target_and_keeps_the_old_one(commands, large, tmp_path):
    target = tmp_path / "target.safetensors"
    target.write_bytes(large.read_bytes())
    run = commands.start("convert", large, target, first=full_after(8192))
    assert run.status() == 1
    assert f"cannot read or write {target}: File too large" in run.output
    assert target.read_bytes() == large.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_statistics_on_a_full_disk_are_named_and_not_half_there(commands, tmp_path):
    target = tmp_path / "ref.npz"
    run = commands.start("evaluate", "--ref", "digits", "--write-ref", target, first=full_after(1024))
    assert run.status() == 1
    assert f"{target}: File too large" in run.output
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_knows_its_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left.*out\.bin") as caught, atomic_write(tmp_path / "out.bin"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "out.bin")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def below_a_file(tmp_path) -> Path:
    """A place that nobody, root included, can write to."""
    (tmp_path / "file").write_text("kept")
    return tmp_path / "file" / "below"


def test_places_that_cannot_be_written_are_named(below_a_file, large, tmp_path):
    output = invoke("generate", "--network", large, "--outdir", below_a_file, "--seeds", 0, "--steps", 1, expect=1)
    assert f"cannot write {below_a_file}" in output
    output = invoke("train", "--outdir", below_a_file, *TRAIN, expect=1)
    assert str(below_a_file) in output
    output = invoke("convert", large, below_a_file / "net.safetensors", expect=1)
    assert f"cannot read or write {below_a_file / 'net.safetensors'}: Not a directory" in output
    output = invoke("evaluate", "--ref", "digits", "--write-ref", below_a_file / "ref.npz", expect=1)
    assert f"{below_a_file / 'ref.npz'}: Not a directory" in output
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_in_the_place_of_a_file_is_named_and_kept(large, tmp_path):
    out = tmp_path / "out"
    (out / "000001.png").mkdir(parents=True)
    output = invoke("generate", "--network", large, "--outdir", out, "--seeds", "0-1", "--steps", 1, expect=1)
    assert f"cannot write {out / '000001.png'}: Is a directory" in output
    assert (out / "000001.png").is_dir()
    assert not list(out.glob(".*.part"))
    (tmp_path / "net.safetensors").mkdir()
    output = invoke("convert", large, tmp_path / "net.safetensors", expect=2)
    assert "net.safetensors" in output


def test_a_missing_file_or_folder_is_named(tmp_path):
    missing = tmp_path / "missing"
    for command in (
        ["generate", "--network", missing],
        ["convert", missing, tmp_path / "a.safetensors"],
        ["evaluate", "--images", missing, "--ref", "digits"],
        ["evaluate", "--seeds", "0", "--ref", missing],
    ):
        assert str(missing) in invoke(*command, expect=2).replace("\n", "").replace("│", "").replace(" ", "")
    assert f"{missing}: no such file or folder" in invoke("train", "--data", missing, "--outdir", tmp_path, expect=1)
    with pytest.raises(FileNotFoundError, match="missing"):
        edm_fast.load(missing)


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size)).save(buffer, format="PNG")
    return buffer.getvalue()


def huge_png() -> bytes:
    """Says that it has 100,000 × 100,000 pixels, in a few bytes."""
    header = struct.pack(">2I5B", 100_000, 100_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk + png()[33:]


NO_IMAGES = {
    "empty": b"",
    "text": b"these are no pixels",
    "half": png()[: len(png()) // 2],
    "other size": png((8, 9)),
    "huge": huge_png(),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_training_names_what_is_no_image_among_its_data(kind, packed, tmp_path):
    data, files = tmp_path / "data", {"a.png": png(), "bad.png": NO_IMAGES[kind]}
    if packed:
        data = data.with_suffix(".zip")
        with zipfile.ZipFile(data, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        data.mkdir()
        for name, content in files.items():
            (data / name).write_bytes(content)
    output = invoke("train", "--data", data, "--outdir", tmp_path / "out", *TRAIN, expect=1)
    assert output.startswith("Error: ")
    assert str(data) in output
    assert "bad.png" in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_evaluation_names_what_is_no_image_among_its_data(kind, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "bad.png").write_bytes(NO_IMAGES[kind])
    output = invoke("evaluate", "--images", tmp_path, "--ref", "digits", expect=1)
    assert "Error: " in output
    assert "bad.png" in output


def test_a_zip_cut_short_is_named(tmp_path):
    whole = tmp_path / "whole.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("a.png", png())
    for size in (0, 10, whole.stat().st_size // 2, whole.stat().st_size - 1):
        cut = tmp_path / "cut.zip"
        cut.write_bytes(whole.read_bytes()[:size])
        output = invoke("train", "--data", cut, "--outdir", tmp_path / "out", *TRAIN, expect=1)
        assert f"{cut}: truncated, damaged or no zip file" in output
    assert not (tmp_path / "out").exists()
