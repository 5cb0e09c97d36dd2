"""Reference statistics in the files of EDM: an .npz with float64 `mu` [F] and `sigma` [F, F]."""

from __future__ import annotations

import os

import numpy as np

from edm_fast.evaluation.gaussian import Gaussian
from edm_fast.files import atomic_write
from edm_fast.npz import open_npz


def write_statistics(path: str | os.PathLike[str], gaussian: Gaussian) -> None:
    """Write the file whole or not at all; an interruption leaves what stood there. Equal statistics, equal bytes."""
    with atomic_write(path) as file:
        np.savez(file, mu=gaussian.mu, sigma=gaussian.sigma)


def read_statistics(path: str | os.PathLike[str]) -> Gaussian:
    """Read `mu` and `sigma`; other arrays in the file are left alone, and nothing in it is unpickled.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is not such a file, or damaged; says what is wrong with which array.
        MemoryError: an array does not fit in memory, or claims a size that does not; names it.
    """
    # Opened here, so that an error of opening is not mistaken for one of the content.
    with open(path, "rb") as file:
        try:
            content = open_npz(file)
        except MemoryError as error:
            raise MemoryError(f"{path}: its list of arrays does not fit in memory: {error}") from error
        except Exception as error:  # NumPy's reader and the zip module raise whatever they run into
            raise ValueError(f"{path}: is not an .npz file: {str(error) or type(error).__name__}") from error
        with content:
            mu, sigma = (_array(path, content, name) for name in ("mu", "sigma"))
    try:
        return Gaussian(mu, sigma)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _array(path: str | os.PathLike[str], content: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    if name not in content.files:
        raise ValueError(f"{path}: has no array {name}; it has {', '.join(content.files) or 'none'}")
    try:
        array = content[name]
    except MemoryError as error:
        raise MemoryError(f"{path}: the array {name} does not fit in memory: {error}") from error
    except Exception as error:
        raise ValueError(f"{path}: the array {name} cannot be read: {str(error) or type(error).__name__}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: {name} is not an array in NumPy's format")
    return array
