"""Labels of images: class ids or rows of numbers, from EDM's `dataset.json` or from an array."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edm_fast.errors import DataError

LABELS_FILE = "dataset.json"
# Networks with more classes cannot be read back from a checkpoint.
MAX_CLASSES = 1_000_000
_MAX_FLOAT32 = float(np.finfo(np.float32).max)


class Labels(NamedTuple):
    """One label per image: `values` are class ids int64 [N] below `label_dim`, or rows float32 [N, label_dim]."""

    values: Tensor
    label_dim: int

    def take(self, indices: Tensor) -> Tensor:
        """float32 [n, label_dim] of the images at `indices` int64 [n]: one-hot, or the rows as they are."""
        chosen = self.values[indices]
        if chosen.ndim == 1:
            return functional.one_hot(chosen, self.label_dim).to(torch.float32)
        return chosen


def no_labels(count: int) -> Labels:
    """Labels of `count` images that have none: rows without columns."""
    return Labels(torch.zeros([count, 0]), 0)


def labels_of_ids(ids: Tensor) -> Labels:
    """Labels of class ids int64 [N], N ≥ 1, none negative; the largest says how many classes there are."""
    return Labels(ids, int(ids.max()) + 1)


def labels_from_json(content: bytes, where: str, names: Sequence[str]) -> Labels:
    """Labels of the images `names`, in this order, from the bytes of a `dataset.json`.

    The file is {"labels": [[name, label], …]} with a class id or a row of numbers for each image, and slashes in the
    names, or {"labels": null}. Other keys in it are not read.

    Raises DataError, which begins with `where`, for anything else: names that are not images here, images that are not
    named there, ids that are not integers from 0 up, rows of different lengths, ids and rows in one file.
    """
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: no JSON: {str(error)[:80]}") from None
    if not isinstance(record, dict) or "labels" not in record:
        raise DataError(f"{where}: it must be an object with the key 'labels', a list of [name, label] or null")
    if record["labels"] is None:
        return no_labels(len(names))
    by_name = _by_name(record["labels"], where)
    images = set(names)
    unknown = [name for name in by_name if name not in images]
    if unknown:
        raise DataError(f"{where}: {unknown[0][:200]!r} has a label but is not there{_more(unknown)}")
    unlabelled = [name for name in names if name not in by_name]
    if unlabelled:
        raise DataError(
            f"{where}: {unlabelled[0][:200]!r}{_more(unlabelled)} without a label; all images or none must have one"
        )
    return _labels([by_name[name] for name in names], where, names)


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _by_name(pairs: Any, where: str) -> dict[str, Any]:
    if not isinstance(pairs, list):
        raise DataError(f"{where}: 'labels' must be a list or null, but it is {type(pairs).__name__}")
    by_name: dict[str, Any] = {}
    for index, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise DataError(f"{where}: entry {index} of 'labels' must be [name, label], but it is {str(pair)[:80]}")
        if pair[0] in by_name:
            raise DataError(f"{where}: {pair[0][:200]!r} has two labels")
        by_name[pair[0]] = pair[1]
    return by_name


def _labels(values: list[Any], where: str, names: Sequence[str]) -> Labels:
    in_rows = isinstance(values[0], list)
    width = len(values[0]) if in_rows else 0
    for name, value in zip(names, values, strict=True):
        if isinstance(value, list) != in_rows:
            row, single = (names[0], name) if in_rows else (name, names[0])
            raise DataError(f"{where}: {row!r} has a row of numbers and {single!r} does not; all must or none")
        if in_rows and (len(value) != width or not width):
            raise DataError(
                f"{where}: {name!r} has a row of {len(value)} numbers and {names[0]!r} one of {width}; "
                f"rows must be equally long and not empty"
            )
        if in_rows and not all(_is_number(item) for item in value):
            raise DataError(f"{where}: the row of {name!r} must hold finite numbers, but it is {str(value)[:80]}")
        if not in_rows and not (type(value) is int and 0 <= value < MAX_CLASSES):
            raise DataError(
                f"{where}: the label of {name!r} must be an integer from 0 to {MAX_CLASSES - 1}, or a row of numbers, "
                f"but it is {str(value)[:80]!r}"
            )
    if in_rows:
        return Labels(torch.tensor(values, dtype=torch.float32), width)
    return labels_of_ids(torch.tensor(values, dtype=torch.int64))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_MAX_FLOAT32 <= value <= _MAX_FLOAT32


def labels_from_array(values: np.ndarray, where: str, count: int) -> Labels:
    """Labels of `count` images from an array: integers [N] are class ids, numbers [N, D] are rows.

    Raises DataError, which begins with `where`, for another shape or dtype and for values that are out of range.
    """
    kind = values.dtype.kind
    is_ids = values.ndim == 1 and kind in "iu"
    if not is_ids and not (values.ndim == 2 and values.shape[1] and kind in "iuf"):
        raise DataError(
            f"{where}: labels must be class ids, integers [N], or rows, numbers [N, D], "
            f"but they are {values.dtype} {list(values.shape)}"
        )
    if len(values) != count:
        raise DataError(f"{where}: {count} images have {len(values)} labels")
    # NaN is on neither side of a bound, so the good ones are asked for.
    low, high = (0, MAX_CLASSES - 1) if is_ids else (-_MAX_FLOAT32, _MAX_FLOAT32)
    good = (values >= low) & (values <= high)
    if not good.all():
        index = int(np.argmin(good if is_ids else good.all(axis=1)))
        wanted = f"an integer from 0 to {MAX_CLASSES - 1}" if is_ids else "finite"
        raise DataError(f"{where}: the label of image {index} must be {wanted}, but it is {values[index]}")
    if is_ids:
        return labels_of_ids(torch.from_numpy(values.astype(np.int64)))
    return Labels(torch.from_numpy(values.astype(np.float32)), values.shape[1])
