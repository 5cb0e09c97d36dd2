"""Bad training data are refused when they are opened, by the name of the file and the reason."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from training.image_files import NAMES, encoded, files_of, flipped, pixels, write_either, write_folder, write_zip

from edm_fast.errors import DataError
from edm_fast.training.data import open_data

KINDS = pytest.mark.parametrize("kind", ["folder", "zip"])
IDS = [6, 0, 2, 2]
LAST = NAMES[-1]


def animated() -> bytes:
    frames = [Image.fromarray(image) for image in pixels()]
    buffer = io.BytesIO()
    frames[0].save(buffer, format="PNG", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + name + content + struct.pack(">L", zlib.crc32(name + content))


def plain_png(width: int, depth: int = 8) -> bytes:
    """A colour PNG of `width` columns and rows, written by hand; only its first 36 values are there."""
    header = struct.pack(">2L5B", width, width, depth, 2, 0, 0, 0)
    body = zlib.compress((b"\0" + bytes(width * 3 * depth // 8)) * min(width, 6))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


GOOD = encoded(pixels()[0])
BAD_IMAGES = {
    "truncated": (GOOD[: len(GOOD) // 2], "truncated"),
    "empty": (b"", "damaged"),
    "not an image": (b"hello" * 20, "damaged, or none of PNG, JPEG"),
    "gif inside": (encoded(pixels()[0], "GIF"), "none of PNG, JPEG"),
    "truncated jpeg": (encoded(pixels()[0], "JPEG")[:-40], "truncated"),
    "damaged pixels": (flipped(GOOD, GOOD.index(b"IDAT") + 20), "damaged"),
    "damaged checksum": (flipped(GOOD, len(GOOD) - 14), "damaged"),
    "other size": (encoded(pixels(resolution=8)[0]), "8x8 RGB, but the first image is 6x6 RGB"),
    "grey": (encoded(pixels(channels=1)[0]), "6x6 grey, but the first image is 6x6 RGB"),
    "alpha": (encoded(pixels(channels=4)[0]), "mode RGBA; images must be"),
    "grey with alpha": (encoded(pixels()[0], mode="LA"), "mode LA"),
    "palette": (encoded(pixels()[0], mode="P"), "mode P;"),
    "transparent colour": (encoded(pixels()[0], transparency=(1, 2, 3)), "mode RGB with transparency"),
    "cmyk": (encoded(pixels()[0], "JPEG", mode="CMYK"), "mode CMYK"),
    "16 bits": (plain_png(6, depth=16), "16 bits a channel"),
    "not square": (encoded(pixels()[0][:4]), "6x4; images must be square"),
    "animated": (animated(), "4 frames"),
    "huge claim": (plain_png(9000), "9000x9000, larger than 8192x8192"),
    "huge beyond pillow": (plain_png(60000), "damaged"),
}


@KINDS
@pytest.mark.parametrize("memory", [0, 2**20], ids=["from disk", "in memory"])
@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_named(name, memory, kind, tmp_path):
    content, reason = BAD_IMAGES[name]
    path = write_either(tmp_path / "data", {**files_of(pixels()), LAST: content}, kind)
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}.*{LAST}.*{reason}"):
        open_data(path, memory=memory)


def test_hand_written_png_is_good_where_it_says_the_truth(tmp_path):
    assert len(open_data(write_folder(tmp_path, {"a.png": plain_png(6)}))) == 1


@KINDS
@pytest.mark.parametrize("name", ["notes.txt", "00000/dataset.json", "a.gif", "00001/img", "b.npz"])
def test_a_file_that_is_no_image_is_named(name, kind, tmp_path):
    path = write_either(tmp_path / "data", {**files_of(pixels(), IDS), name: GOOD}, kind)
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}.*{name}.*: not an image; images end in \.png"):
        open_data(path)


@KINDS
def test_data_without_images_are_refused(kind, tmp_path):
    path = write_either(tmp_path / "data", {".hidden.png": GOOD, "dataset.json": b'{"labels": null}'}, kind)
    with pytest.raises(DataError, match=rf"{path}: there is no image in it"):
        open_data(path)


BAD_LABELS = {
    "no json": (b"{", "no JSON"),
    "deep json": (b"[" * 100_000, "no JSON"),
    "latin": (b'{"labels": "\xff"}', "no JSON"),
    "list": (b"[]", "it must be an object with the key 'labels'"),
    "other key": (b'{"label": null}', "it must be an object with the key 'labels'"),
    "labels by name": (b'{"labels": {}}', "'labels' must be a list or null, but it is dict"),
    "triple": (b'{"labels": [["img3.png", 1, 2]]}', r"entry 0 of 'labels' must be \[name, label\]"),
    "number for a name": (b'{"labels": [[3, 1]]}', r"entry 0 of 'labels' must be \[name, label\]"),
    "empty": (b'{"labels": []}', "'00000/img0.png' and 3 more without a label; all images or none"),
}


@KINDS
@pytest.mark.parametrize("name", BAD_LABELS)
def test_a_bad_label_file_is_named(name, kind, tmp_path):
    content, reason = BAD_LABELS[name]
    path = write_either(tmp_path / "data", {**files_of(pixels()), "dataset.json": content}, kind)
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}.*dataset\.json.*: {reason}"):
        open_data(path)


BAD_VALUES = {
    "negative": ([1, 0, -1, 0], "label of '00001/img2.png' must be an integer from 0 to 999999.*'-1'"),
    "too large": ([1, 0, 10**6, 0], "label of '00001/img2.png' must be an integer.*1000000"),
    "float among ids": ([1, 0, 1.5, 0], "label of '00001/img2.png' must be an integer.*'1.5'"),
    "string": (["cat", 0, 1, 0], "label of '00000/img0.png' must be an integer.*'cat'"),
    "boolean": ([0, True, 1, 0], "label of '00000/img1.png' must be an integer.*'True'"),
    "null": ([0, None, 1, 0], "label of '00000/img1.png' must be an integer.*'None'"),
    "id among rows": ([[1.0], 0, [1], [0]], "'00000/img0.png' has a row of numbers and '00000/img1.png' does not"),
    "row among ids": ([1, 0, [1], 0], "'00001/img2.png' has a row of numbers and '00000/img0.png' does not"),
    "widths": ([[1, 2], [1], [1, 2], [1, 2]], "img1.png' has a row of 1 numbers and '00000/img0.png' one of 2"),
    "empty rows": ([[], [], [], []], "has a row of 0 numbers"),
    "string in a row": ([[1, "2"], [1, 2], [1, 2], [1, 2]], "row of '00000/img0.png' must hold finite numbers"),
    "nan in a row": ([[1], [float("nan")], [1], [1]], "row of '00000/img1.png' must hold finite numbers"),
    "overflow in a row": ([[1], [10**400], [1], [1]], "row of '00000/img1.png' must hold finite numbers"),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_bad_label_is_named(name, tmp_path):
    values, reason = BAD_VALUES[name]
    path = write_folder(tmp_path / "data", files_of(pixels(), values))
    with pytest.raises(DataError, match=rf"{path}/dataset\.json: .*{reason}"):
        open_data(path)


@KINDS
def test_labels_and_images_must_be_the_same(kind, tmp_path):
    files = files_of(pixels(), IDS)
    absent = {name: content for name, content in files.items() if name != NAMES[1]}
    with pytest.raises(DataError, match=r"dataset\.json.*'00000/img1\.png' has a label but is not there"):
        open_data(write_either(tmp_path / "absent", absent, kind))
    with pytest.raises(DataError, match=r"dataset\.json.*'img4\.png' without a label"):
        open_data(write_either(tmp_path / "more", {**files, "img4.png": GOOD}, kind))
    pairs = [[name, 0] for name in [*NAMES, NAMES[0]]]
    twice = {**files, "dataset.json": json.dumps({"labels": pairs}).encode()}
    with pytest.raises(DataError, match=r"dataset\.json.*'00000/img0\.png' has two labels"):
        open_data(write_either(tmp_path / "twice", twice, kind))


def test_links_and_special_files_in_a_folder(tmp_path):
    path = write_folder(tmp_path / "data", files_of(pixels()))
    elsewhere = write_folder(tmp_path / "elsewhere", {"x.png": GOOD})
    (path / "linked").symlink_to(elsewhere)
    assert len(open_data(path)) == 5
    (elsewhere / "loop").symlink_to(path)
    with pytest.raises(DataError, match=rf"{path}/linked/loop: a link to a folder that is among the data already"):
        open_data(path)
    (elsewhere / "loop").unlink()
    (path / "broken.png").symlink_to(tmp_path / "absent.png")
    with pytest.raises(DataError, match=rf"{path}/broken\.png: cannot be read: No such file"):
        open_data(path)
    (path / "broken.png").unlink()
    os.mkfifo(path / "pipe.png")
    with pytest.raises(DataError, match=rf"{path}/pipe\.png: not a regular file"):
        open_data(path)


def test_unreadable_files_and_folders_are_named(tmp_path, monkeypatch):
    def deny(*arguments):
        raise PermissionError(13, "Permission denied", arguments[0])

    folder = write_folder(tmp_path / "data", files_of(pixels()))
    archive = write_zip(tmp_path / "data.zip", files_of(pixels()))
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_bytes", deny)
        with pytest.raises(DataError, match=rf"{folder}/{NAMES[0]}: cannot be read: Permission denied"):
            open_data(folder)
    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", deny)
        with pytest.raises(DataError, match=rf"{folder}: cannot be read: Permission denied"):
            open_data(folder)
    with monkeypatch.context() as patch:
        patch.setattr("os.open", deny)
        with pytest.raises(DataError, match=rf"{archive}: cannot be read: Permission denied"):
            open_data(archive)


def test_what_is_no_data_is_said(tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path}/absent: no such file or folder; the built-in data .* digits"):
        open_data(tmp_path / "absent")
    (tmp_path / "data.tar").write_bytes(b"x")
    with pytest.raises(DataError, match=r"data\.tar: data must be a folder of images, a \.zip, an \.npz, or digits"):
        open_data(tmp_path / "data.tar")


IMAGES = pixels()


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"arr_0": IMAGES}, "no array 'images'"),
        ({"images": IMAGES.astype(np.float32)}, r"images must be uint8.*float32 \[4, 6, 6, 3\]"),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, r"channels last.*uint8 \[4, 3, 6, 6\]"),
        ({"images": IMAGES[:, :4]}, r"uint8 \[4, 4, 6, 3\]"),
        ({"images": pixels(channels=4)}, r"uint8 \[4, 6, 6, 4\]"),
        ({"images": IMAGES[:0]}, r"uint8 \[0, 6, 6, 3\]"),
        ({"images": IMAGES[0, 0]}, r"uint8 \[6, 3\]"),
        ({"images": np.array([None])}, "Object arrays cannot be loaded"),
        ({"images": IMAGES, "labels": [0, 1, 2]}, "4 images have 3 labels"),
        ({"images": IMAGES, "labels": [0, 1, -1, 2]}, "label of image 2 must be an integer from 0.*-1"),
        ({"images": IMAGES, "labels": [0, 1, 10**6, 2]}, "label of image 2 must be an integer from 0.*1000000"),
        ({"images": IMAGES, "labels": [0.0, 1.0, 2.0, 2.0]}, r"labels must be class ids.*float64 \[4\]"),
        ({"images": IMAGES, "labels": list("abcd")}, "labels must be class ids.*<U1"),
        ({"images": IMAGES, "labels": [True] * 4}, "labels must be class ids.*bool"),
        ({"images": IMAGES, "labels": np.zeros([4, 0])}, r"labels must be class ids.*\[4, 0\]"),
        ({"images": IMAGES, "labels": [[1.0, 2.0]] * 3 + [[1.0, np.inf]]}, r"label of image 3 must be finite.*inf"),
    ],
    ids=range(16),
)
def test_bad_arrays_are_refused(arrays, reason, tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=rf"{path}: .*{reason}"):
        open_data(path)


def test_a_damaged_npz_is_named(tmp_path):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, images=IMAGES)
    content = path.read_bytes()
    for damaged in (b"", content[:50], content[:-5], flipped(content, 300), b"hello" * 9):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{path}: truncated, damaged or no \.npz file"):
            open_data(path)
    with open(path, "wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(DataError, match=rf"{path}: truncated, damaged or no \.npz file: a single array"):
        open_data(path)


@pytest.mark.parametrize("name", ["images", "labels"])
def test_an_npz_with_something_else_in_it_is_refused(name, tmp_path):
    arrays = io.BytesIO()
    np.save(arrays, IMAGES)
    path = write_zip(tmp_path / "data.npz", {"images.npy": arrays.getvalue(), f"{name}.npy": b"plain bytes"})
    with pytest.raises(DataError, match=rf"{path}: {name} is not an array"):
        open_data(path)


def test_an_npz_of_huge_claimed_size_is_refused(tmp_path):
    header = io.BytesIO()
    claim = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 64, 64, 3)}
    np.lib.format.write_array_header_1_0(header, claim)
    path = write_zip(tmp_path / "data.npz", {"images.npy": header.getvalue() + bytes(100)})
    with pytest.raises(DataError, match=rf"{path}: does not fit in memory, or claims a size that does not: Unable"):
        open_data(path)


def test_an_error_without_words_is_named_by_its_kind(tmp_path, monkeypatch):
    """Parsers raise EOFError() and the like, and no text would stand behind 'damaged:'."""

    def fail(*args, **kwargs):
        raise EOFError

    path = tmp_path / "images.npz"
    np.savez(path, images=np.zeros([2, 8, 8, 3], dtype=np.uint8))
    folder = write_folder(tmp_path / "folder", files_of(pixels()))
    with monkeypatch.context() as patched:
        patched.setattr("edm_fast.training.data.arrays.open_npz", fail)
        with pytest.raises(DataError, match=r"images\.npz: .*: EOFError$"):
            open_data(path)
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(DataError, match="damaged: EOFError$"):
        open_data(folder)
