"""Zip files that are damaged or lie about what they hold are refused by name when they are opened."""

from __future__ import annotations

import zipfile

import pytest
from training.image_files import NAMES, encoded, files_of, flipped, pixels, write_zip

from edm_fast.errors import DataError
from edm_fast.training.data import open_data

IDS = [6, 0, 2, 2]
LAST = NAMES[-1]


def test_a_truncated_zip_is_named(tmp_path):
    path = write_zip(tmp_path / "data.zip", files_of(pixels()))
    content = path.read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=rf"{path}: truncated, damaged or no zip file"):
            open_data(path)


def rewritten(path, change, member=LAST):
    """Change the directory's entry of a member: the zip module writes what the changed record says."""
    with zipfile.ZipFile(path, "a") as archive:
        change(archive.getinfo(member))
        archive._didModify = True
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"file_size": 2**40}, "1099511627776 bytes, more than"),
        ({"compress_size": 2**40}, "1099511627776 bytes, more than"),
        ({"file_size": 10**8}, "truncated or damaged"),
        ({"file_size": 10}, "truncated or damaged"),
        ({"CRC": 7}, "checksum"),
        ({"header_offset": 5}, "there is no member where"),
        ({"header_offset": 10**9}, "there is no member where"),
        ({"flag_bits": 1}, "encrypted"),
        ({"compress_type": zipfile.ZIP_LZMA}, "packed by method 14"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_zip_member_that_is_not_what_it_claims_is_named(changes, reason, compression, tmp_path):
    def change(info):
        for name, value in changes.items():
            setattr(info, name, value)

    path = rewritten(write_zip(tmp_path / "data.zip", files_of(pixels()), compression), change)
    with pytest.raises(DataError, match=rf"{path}.*{LAST}.*{reason}"):
        open_data(path)


def test_a_label_file_of_huge_claimed_size_is_refused(tmp_path):
    path = write_zip(tmp_path / "data.zip", files_of(pixels(), IDS))
    rewritten(path, lambda info: setattr(info, "file_size", 2**40), "dataset.json")
    with pytest.raises(DataError, match=r"dataset\.json': 1099511627776 bytes, more than"):
        open_data(path)


def test_a_name_that_comes_twice_in_a_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "data.zip", files_of(pixels()))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(LAST, encoded(pixels()[0]))
    with pytest.raises(DataError, match=rf"{LAST}.*two members of this name"):
        open_data(path)


def test_a_damaged_byte_in_a_stored_member_is_noticed_by_its_checksum(tmp_path):
    jpeg = encoded(pixels()[0], "JPEG")
    path = write_zip(tmp_path / "data.zip", {"a.jpg": jpeg}, zipfile.ZIP_STORED)
    content = path.read_bytes()
    path.write_bytes(flipped(content, content.index(jpeg) + len(jpeg) - 8))
    with pytest.raises(DataError, match=r"'a\.jpg'.*checksum"):
        open_data(path)
