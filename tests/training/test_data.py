"""The built-in digits and their split."""

from __future__ import annotations

import sys

import pytest
import torch

from edm_fast.training.data import held_out_mask, load_digits, split_digits


def test_digits_are_grey_images_between_minus_one_and_one():
    images, labels = load_digits()
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (float(images.min()), float(images.max())) == (-1, 1)
    assert torch.equal(((images + 1) * 8).round(), (images + 1) * 8)
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(10))


def test_split_is_fixed_and_stratified_and_loses_nothing():
    images, labels = load_digits()
    train, held_out = split_digits()
    assert (len(train.images), len(held_out.images)) == (1501, 296)
    assert torch.equal(train.labels.bincount() + held_out.labels.bincount(), labels.bincount())
    assert held_out.labels.bincount().tolist() == [count // 6 for count in labels.bincount().tolist()]
    together = torch.cat([train.images, held_out.images]).flatten(1)
    assert torch.equal(together.unique(dim=0), images.flatten(1).unique(dim=0))
    again = split_digits()[1]
    assert torch.equal(again.images, held_out.images)


def test_every_sixth_image_of_a_class_is_held_out():
    labels = torch.tensor([0, 1] * 7 + [0] * 6)
    mask = held_out_mask(labels)
    assert mask.nonzero().flatten().tolist() == [10, 11, 18]


def test_missing_scikit_learn_is_said_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"scikit-learn.*pip install 'edm-fast\[train\]'"):
        load_digits()
