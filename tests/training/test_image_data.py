"""Training data from files: every source gives the same images and labels, from memory and from disk."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from training.image_files import NAMES, encoded, files_of, pixels, write_either, write_folder, write_zip

from edm_fast.errors import DataError
from edm_fast.training.data import ImageData, open_data, split_digits, to_float

IDS = [6, 0, 2, 2]
ONE_HOT = torch.eye(7)[IDS]
FROM_DISK = {"memory": 0}
KINDS = pytest.mark.parametrize("kind", ["folder", "zip"])


def nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def opened(tmp_path, kind, files, **options) -> ImageData:
    return open_data(write_either(tmp_path / "data", files, kind), **options)


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("memory", [0, 2**20], ids=["from disk", "in memory"])
@pytest.mark.parametrize("compression", [None, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_folder_and_zip_give_pixels_and_labels_by_path(channels, compression, memory, tmp_path):
    images = pixels(channels=channels)
    files = files_of(images, IDS)
    if compression is None:
        path = write_folder(tmp_path / "data", files)
    else:
        path = write_zip(tmp_path / "data.zip", files, compression)
    data = open_data(path, memory=memory)
    assert (len(data), data.resolution, data.num_channels, data.label_dim) == (4, 6, channels, 7)
    order = torch.tensor([3, 0, 0, 2])
    found, labels = data.batch(order)
    assert found.dtype == torch.uint8
    assert torch.equal(found, nchw(images)[order])
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.float32
    assert torch.equal(labels, ONE_HOT[order])


@pytest.mark.parametrize("channels", [0, 1, 3], ids=["NHW", "NHW1", "NHW3"])
def test_npz_gives_pixels_and_labels(channels, tmp_path):
    images = pixels(channels=max(channels, 1))
    stored = images if channels else images[:, :, :, 0]
    data = open_data(write_npz(tmp_path / "data.npz", images=stored, labels=np.array(IDS, np.uint8), other=np.ones(2)))
    assert (len(data), data.resolution, data.num_channels, data.label_dim) == (4, 6, max(channels, 1), 7)
    found, labels = data.batch([1, 3])
    assert torch.equal(found, nchw(images)[[1, 3]])
    assert torch.equal(labels, ONE_HOT[[1, 3]])


def test_digits_are_the_training_part_in_float():
    data = open_data("digits")
    images, ids = split_digits()[0]
    assert (len(data), data.resolution, data.num_channels, data.label_dim) == (1501, 8, 1, 10)
    found, labels = data.batch([5, 1500])
    assert torch.equal(found, images[[5, 1500]])
    assert torch.equal(labels, torch.eye(10)[ids[[5, 1500]]])


def test_to_float_maps_bytes_to_minus_one_and_one():
    floats = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert torch.equal(floats, torch.tensor([0.0, 51.0, 255.0]) / 127.5 - 1)
    assert floats.dtype == torch.float32
    digits = torch.tensor([-1.0, 0.125])
    assert to_float(digits) is digits
    with pytest.raises(TypeError, match=r"images must be uint8 or float32.*int64"):
        to_float(torch.tensor([1]))


@KINDS
@pytest.mark.parametrize("kind_of_file", ["PNG", "JPEG", "WEBP", "BMP"])
def test_formats_are_told_by_content(kind_of_file, kind, tmp_path):
    image = np.full([6, 6, 3], 40, np.uint8)
    options = {"lossless": True} if kind_of_file == "WEBP" else {}
    data = opened(tmp_path, kind, {"a.jpg": encoded(image, kind_of_file, **options)})
    found = data.batch([0])[0]
    assert int((found.int() - 40).abs().max()) <= (2 if kind_of_file == "JPEG" else 0)


@KINDS
def test_hidden_files_are_passed_over(kind, tmp_path):
    files = {**files_of(pixels()), ".DS_Store": b"x", "00000/.notes.txt": b"x", ".git/config": b"x", ".git/a.png": b"x"}
    assert len(opened(tmp_path, kind, {**files, "__MACOSX/._img3.png": b"x"})) == 4


@KINDS
@pytest.mark.parametrize("labels", [None, "absent"], ids=["null", "absent"])
def test_data_may_have_no_labels(labels, kind, tmp_path):
    data = opened(tmp_path, kind, files_of(pixels(), labels))
    assert data.label_dim == 0
    assert data.batch([2, 1])[1].shape == (2, 0)


@KINDS
def test_rows_of_numbers_are_labels_as_they_are(kind, tmp_path):
    rows = [[0.5, 1], [0, -2.25], [3, 4], [5, 6]]
    data = opened(tmp_path, kind, files_of(pixels(), rows))
    assert data.label_dim == 2
    assert torch.equal(data.batch([1, 0])[1], torch.tensor([[0, -2.25], [0.5, 1]]))


def test_rows_in_npz_are_labels_as_they_are(tmp_path):
    rows = np.arange(8.0).reshape(4, 2)
    data = open_data(write_npz(tmp_path / "data.npz", images=pixels(), labels=rows))
    assert torch.equal(data.batch([3])[1], torch.tensor([[6.0, 7.0]]))


@pytest.mark.parametrize("options", [FROM_DISK, {}], ids=["from disk", "in memory"])
@KINDS
def test_an_empty_batch_has_the_shape_of_others(kind, options, tmp_path):
    found, labels = opened(tmp_path, kind, files_of(pixels(), IDS), **options).batch([])
    assert found.shape == (0, 3, 6, 6)
    assert labels.shape == (0, 7)


def test_wrong_indices_are_refused(tmp_path):
    data = opened(tmp_path, "folder", files_of(pixels()))
    for indices in ([0, 4], [-1]):
        with pytest.raises(IndexError, match=r"indices must be from 0 to 3"):
            data.batch(indices)
    for indices in (torch.tensor([0.5]), torch.tensor([True, False])):
        with pytest.raises(TypeError, match=r"indices must be integers"):
            data.batch(indices)


def test_fingerprint_is_that_of_names_sizes_and_labels(tmp_path):
    images = pixels()
    files = files_of(images, IDS)
    same = [write_either(tmp_path / "same", files, kind) for kind in ("folder", "zip")]
    renamed = {("img4.png" if name == "img3.png" else name): content for name, content in files_of(images).items()}
    other = [
        write_folder(tmp_path / "unlabelled", files_of(images)),
        write_folder(tmp_path / "labels", files_of(images, [6, 0, 2, 3])),
        write_folder(tmp_path / "rows", files_of(images, ONE_HOT.tolist())),
        write_folder(tmp_path / "zeros", files_of(images, [[0.0]] * 4)),
        write_folder(tmp_path / "more zeros", files_of(images, [[0.0, 0.0]] * 4)),
        write_folder(tmp_path / "one class", files_of(images, [0] * 4)),
        write_folder(tmp_path / "renamed", renamed),
        write_folder(tmp_path / "resized", {**files, "img3.png": files["img3.png"] + b"\0"}),
        write_npz(tmp_path / "arrays.npz", images=images, labels=IDS),
        write_npz(tmp_path / "other.npz", images=images[::-1], labels=IDS),
        write_npz(tmp_path / "unlabelled.npz", images=images),
        "digits",
    ]
    options = [{}, FROM_DISK, {**FROM_DISK, "checked": True}]
    of_same = {open_data(path, **chosen).fingerprint for path in same for chosen in options}
    assert len(of_same) == 1
    assert len(of_same | {open_data(path).fingerprint for path in other}) == 1 + len(other)


def test_checked_data_are_not_decoded_again(tmp_path):
    files = files_of(pixels(), IDS)
    path = write_folder(tmp_path / "data", {**files, NAMES[2]: b"damaged"})
    data = open_data(path, checked=True, **FROM_DISK)
    assert torch.equal(data.batch([3])[0], nchw(pixels())[[3]])
    with pytest.raises(DataError, match=r"img2\.png.*damaged"):
        data.batch([2])


@KINDS
def test_data_that_change_after_opening_are_noticed(kind, tmp_path):
    data = opened(tmp_path, kind, files_of(pixels()), **FROM_DISK)
    write_either(tmp_path / "data", files_of(pixels(resolution=8)), kind)
    with pytest.raises(DataError, match=r"img0\.png"):
        data.batch([0])


@KINDS
def test_threads_and_forks_and_copies_read_the_same(kind, tmp_path):
    data = opened(tmp_path, kind, files_of(pixels()), **FROM_DISK)
    wanted = nchw(pixels())

    def reads_well(source: ImageData = data) -> bool:
        return all(torch.equal(source.batch([index])[0][0], wanted[index]) for index in [0, 1, 2, 3] * 5)

    context = multiprocessing.get_context("fork")
    statuses = [context.Process(target=lambda: os._exit(0 if reads_well() else 1)) for _ in range(2)]
    for process in statuses:
        process.start()
    assert reads_well()
    for process in statuses:
        process.join(60)
    assert [process.exitcode for process in statuses] == [0, 0]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: reads_well(), range(8)))
    copied = pickle.loads(pickle.dumps(data))
    del data
    assert reads_well(copied)


def test_a_copy_of_a_zip_that_is_gone_is_refused_and_the_original_reads_on(tmp_path):
    path = write_zip(tmp_path / "data.zip", files_of(pixels()))
    data = open_data(path, **FROM_DISK)
    stored = pickle.dumps(data)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path}: cannot be read"):
        pickle.loads(stored)
    assert torch.equal(data.batch([1])[0], nchw(pixels())[[1]])


def test_a_zip_is_one_open_file(tmp_path):
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    path = write_zip(tmp_path / "data.zip", files_of(pixels()))
    before = descriptors()
    data = open_data(path, **FROM_DISK)
    for _ in range(3):
        data.batch([0, 1, 2, 3])
    assert descriptors() == before + 1
    del data
    assert descriptors() == before
