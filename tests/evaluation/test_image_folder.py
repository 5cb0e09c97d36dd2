"""Folders of images: what is read, in which order, and what is named before any work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from edm_fast.evaluation import FolderImages


def save(path, value=0, size=(4, 3), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)
    return path


def values(folder, batch=2):
    return torch.cat(list(folder.batches(batch)))[:, 0, 0, 0].tolist()


def test_files_of_all_folders_come_sorted_by_path(tmp_path):
    for index, name in enumerate(("b/2.png", "a.png", "b/10.png", "c.png", "b/a/x.PNG")):
        save(tmp_path / name, index)
    folder = FolderImages(tmp_path)
    assert len(folder) == 5
    assert folder.shape == (1, 3, 4)
    assert values(folder) == [1, 2, 0, 4, 3]
    assert [tuple(batch.shape) for batch in folder.batches(2)] == [(2, 1, 3, 4), (2, 1, 3, 4), (1, 1, 3, 4)]


def test_pixels_are_those_of_the_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    [batch] = FolderImages(tmp_path).batches(8)
    assert batch.dtype == torch.uint8
    assert np.array_equal(batch[0].permute(1, 2, 0).numpy(), pixels)


def test_jpeg_is_read(tmp_path):
    save(tmp_path / "a.jpg", 77)
    assert values(FolderImages(tmp_path)) == [77]


def test_a_folder_of_generate_is_its_images(tmp_path):
    save(tmp_path / "000000.png", 5)
    save(tmp_path / "grid.png", size=(50, 50))
    (tmp_path / "manifest.jsonl").write_text("{}")
    (tmp_path / ".000001.png.123-abc.part").write_text("half")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "notes").write_text("hidden")
    assert values(FolderImages(tmp_path)) == [5]


def test_a_grid_without_a_manifest_is_an_image(tmp_path):
    save(tmp_path / "grid.png", 3)
    assert values(FolderImages(tmp_path)) == [3]


def test_rgb_makes_grey_images_three_channels(tmp_path):
    save(tmp_path / "a.png", 9)
    save(tmp_path / "b.png", (1, 2, 3), mode="RGB")
    with pytest.raises(ValueError, match=r"b.png: is 4×3 in colour; the other images are 4×3 in grey"):
        FolderImages(tmp_path)
    folder = FolderImages(tmp_path, rgb=True)
    assert folder.shape == (3, 3, 4)
    assert next(folder.batches(2))[:, :, 0, 0].tolist() == [[9, 9, 9], [1, 2, 3]]


def test_the_image_of_another_size_is_named(tmp_path):
    for name in ("a", "c", "d"):
        save(tmp_path / f"{name}.png")
    save(tmp_path / "b.png", size=(4, 5))
    with pytest.raises(ValueError, match="b.png: is 4×5 in grey; the other images are 4×3 in grey"):
        FolderImages(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", b"label,score\n", b"GIF89a\x01\x00\x01\x00\x00\x00\x00"]
)
def test_a_file_that_is_no_image_is_named(content, tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(ValueError, match="b.png: is not a"):
        FolderImages(tmp_path)


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "1", "I;16"])
def test_other_colour_modes_are_named(mode, tmp_path):
    save(tmp_path / "a.png", mode=mode)
    with pytest.raises(ValueError, match=f"a.png: has the colour mode {mode}; grey"):
        FolderImages(tmp_path)


def test_an_image_that_ends_early_is_named_when_it_is_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="a.png: is damaged"):
        list(FolderImages(tmp_path).batches(4))


def test_an_image_that_is_exchanged_meanwhile_is_named(tmp_path):
    save(tmp_path / "a.png")
    folder = FolderImages(tmp_path)
    save(tmp_path / "a.png", size=(3, 4))
    with pytest.raises(ValueError, match="a.png: was changed"):
        list(folder.batches(4))


def test_folders_without_images_links_and_missing_folders_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: holds no image"):
        FolderImages(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        FolderImages(tmp_path / "nowhere")
    save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "more").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="more: is a link to a folder"):
        FolderImages(tmp_path / "images")
