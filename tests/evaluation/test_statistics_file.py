"""Files of reference statistics: what is written comes back, and what is wrong is named."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from edm_fast.evaluation import Gaussian, read_statistics, statistics_file, write_statistics

GAUSSIAN = Gaussian(np.array([1.0, -2.0]), np.array([[2.0, 0.5], [0.5, 3.0]]))


def write(path, **arrays):
    with open(path, "wb") as file:
        np.savez(file, **arrays)
    return path


def test_they_come_back_to_the_bit(tmp_path):
    write_statistics(tmp_path / "ref.npz", GAUSSIAN)
    found = read_statistics(tmp_path / "ref.npz")
    assert np.array_equal(found.mu, GAUSSIAN.mu)
    assert np.array_equal(found.sigma, GAUSSIAN.sigma)


def test_the_file_holds_mu_and_sigma_in_float64(tmp_path):
    write_statistics(tmp_path / "ref.npz", GAUSSIAN)
    with np.load(tmp_path / "ref.npz", allow_pickle=False) as content:
        assert {name: content[name].dtype for name in content} == {"mu": np.float64, "sigma": np.float64}


def test_equal_statistics_make_equal_files_under_the_name_given(tmp_path):
    for name in ("a", "b.stats"):
        write_statistics(tmp_path / name, GAUSSIAN)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b.stats").read_bytes()


def test_compressed_files_and_other_arrays_beside_are_read(tmp_path):
    np.savez_compressed(tmp_path / "ref.npz", mu=GAUSSIAN.mu, sigma=GAUSSIAN.sigma, names=np.array(["a"], dtype=object))
    assert np.array_equal(read_statistics(tmp_path / "ref.npz").sigma, GAUSSIAN.sigma)


def test_an_interrupted_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "ref.npz"
    write_statistics(path, GAUSSIAN)
    before = path.read_bytes()

    def interrupted(file, **arrays):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(statistics_file.np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_statistics(path, GAUSSIAN)
    assert [each.name for each in tmp_path.iterdir()] == ["ref.npz"]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(2)}, "has no array sigma; it has mu"),
        ({"mean": np.zeros(2)}, "has no array mu; it has mean"),
        ({"mu": np.zeros(2), "sigma": np.eye(3)}, r"sigma: shape is \(3, 3\)"),
        ({"mu": np.array([0, np.nan]), "sigma": np.eye(2)}, "mu: holds NaN"),
        ({"mu": np.array([None, 1.0]), "sigma": np.eye(2)}, "array mu cannot be read: Object arrays"),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "mu: dtype is <U1"),
    ],
)
def test_a_file_with_the_wrong_arrays_is_named(arrays, message, tmp_path):
    path = write(tmp_path / "ref.npz", **arrays)
    with pytest.raises(ValueError, match=f"ref.npz: .*{message}"):
        read_statistics(path)


def test_a_truncated_file_is_named_wherever_it_ends(tmp_path):
    write_statistics(tmp_path / "whole.npz", GAUSSIAN)
    whole = (tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "ref.npz"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="ref.npz: "):
            read_statistics(path)


def test_flipped_bits_are_named_or_harmless(tmp_path):
    write_statistics(tmp_path / "whole.npz", GAUSSIAN)
    whole = (tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "ref.npz"

    def error():
        try:
            found = read_statistics(path)
        except ValueError as error:
            return str(error)
        assert np.array_equal(found.mu, GAUSSIAN.mu)
        assert np.array_equal(found.sigma, GAUSSIAN.sigma)
        return None

    errors = []
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        errors.append(error())
    named = [message for message in errors if message is not None]
    assert len(named) > len(errors) / 2
    assert all("ref.npz: " in message for message in named)


def test_an_array_that_claims_more_than_memory_is_named(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 1 << 10)})
    with zipfile.ZipFile(tmp_path / "ref.npz", "w") as archive:
        archive.writestr("mu.npy", header.getvalue())
        archive.writestr("sigma.npy", header.getvalue())
    with pytest.raises(MemoryError, match="ref.npz: the array mu does not fit in memory: Unable"):
        read_statistics(tmp_path / "ref.npz")


def test_a_good_file_is_not_called_damaged_where_memory_is_short(tmp_path, monkeypatch):
    write_statistics(tmp_path / "ref.npz", GAUSSIAN)

    def short(*_, **__):
        raise MemoryError("Unable to allocate 32.0 MiB")

    monkeypatch.setattr(np.lib.format, "read_array", short)
    with pytest.raises(MemoryError, match="ref.npz: the array mu does not fit in memory: Unable to allocate 32.0 MiB"):
        read_statistics(tmp_path / "ref.npz")


def test_files_of_other_kinds_are_named(tmp_path):
    (tmp_path / "text.npz").write_text("mu, sigma")
    np.save(tmp_path / "single.npy", np.zeros(3))
    with zipfile.ZipFile(tmp_path / "raw.npz", "w") as archive:
        archive.writestr("mu", b"plain bytes")
    with pytest.raises(ValueError, match="text.npz: is not an .npz file: not a zip archive$"):
        read_statistics(tmp_path / "text.npz")
    (tmp_path / "text.npz").write_text("PKs and other words")
    with pytest.raises(ValueError, match="text.npz: is not an .npz file: not a zip archive$"):
        read_statistics(tmp_path / "text.npz")
    (tmp_path / "text.npz").write_text("")
    with pytest.raises(ValueError, match="text.npz: is not an .npz file: empty$"):
        read_statistics(tmp_path / "text.npz")
    with pytest.raises(ValueError, match="single.npy: is not an .npz file: a single array"):
        read_statistics(tmp_path / "single.npy")
    with pytest.raises(ValueError, match="raw.npz: mu is not an array"):
        read_statistics(tmp_path / "raw.npz")
    with pytest.raises(FileNotFoundError):
        read_statistics(tmp_path / "nowhere.npz")


@pytest.mark.parametrize(("raised", "expected", "words"), [
    (MemoryError("8 GB"), MemoryError, "does not fit in memory: 8 GB"),
    (EOFError(), ValueError, "is not an .npz file: EOFError"),
])  # fmt: skip
def test_what_opening_the_archive_raises_is_named(tmp_path, monkeypatch, raised, expected, words):
    """A good file is not called damaged where memory is short."""

    def fail(file):
        raise raised

    monkeypatch.setattr("edm_fast.evaluation.statistics_file.open_npz", fail)
    path = tmp_path / "reference.npz"
    path.write_bytes(b"PK")
    with pytest.raises(expected, match=words) as caught:
        read_statistics(path)
    assert str(path) in str(caught.value)
