"""Class labels: ids are ids, and what is not one label for each image is refused, never broadcast."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_networks import tiny
from tolerance import assert_same_bits

import edm_fast
from edm_fast.compat import k_diffusion
from edm_fast.samplers import edm_sampler

NET = tiny("adm")
CLASSES = NET.label_dim
LATENTS = edm_fast.randn((3, 8, 8), [1, 2])
ROWS = torch.eye(CLASSES)

ENTRIES = {
    "sample": lambda labels: edm_fast.sample(NET, [1, 2], labels, num_steps=1),
    "edm_sampler": lambda labels: edm_sampler(NET, LATENTS, labels, num_steps=1),
    "k_diffusion": lambda labels: k_diffusion.sample_euler(
        NET, LATENTS, [5.0, 0.0], extra_args={"class_labels": labels}, disable=True
    ),
}


@pytest.fixture(params=ENTRIES)
def entry(request):
    return ENTRIES[request.param]


@pytest.mark.parametrize(
    "labels",
    [
        [3, 1],
        (3, 1),
        np.array([3, 1]),
        np.array([3, 1], dtype=np.uint8),
        np.array([3, 1], dtype=np.uint64),
        torch.tensor([3, 1], dtype=torch.uint8),
        torch.tensor([3, 1], dtype=torch.int16),
        [torch.tensor(3), np.int64(1)],
        ROWS[[3, 1]],
        ROWS[[3, 1]].half(),
        ROWS[[3, 1]].bool(),
        ROWS[[3, 1]].numpy(),
        ROWS[[3, 1]].clone().requires_grad_(),
    ],
    ids=lambda labels: f"{type(labels).__name__} {getattr(labels, 'dtype', '')}",
)
def test_ids_and_rows_of_any_kind_mean_the_same(entry, labels):
    assert_same_bits(entry(labels), entry(torch.tensor([3, 1])))


REFUSED = [
    ([0], ValueError, "1 labels for 2 samples"),
    ([0, 1, 2], ValueError, "3 labels for 2 samples"),
    ([], ValueError, "0 labels for 2 samples"),
    ([0, CLASSES], ValueError, f"id {CLASSES} is not between 0 and {CLASSES - 1}"),
    ([0, -1], ValueError, f"id -1 is not between 0 and {CLASSES - 1}"),
    ([0, 2**63], ValueError, "id 9223372036854775808 does not fit in 64 bits"),
    (np.array([0, 2**64 - 1], dtype=np.uint64), ValueError, "id -1 is not between"),
    (ROWS[:2, :9], ValueError, "rows of width 9; the network wants 10"),
    (torch.zeros([2, 11]), ValueError, "rows of width 11; the network wants 10"),
    (ROWS[:3], ValueError, "3 labels for 2 samples"),
    (torch.zeros([2, CLASSES, 1]), ValueError, "3 dimensions; ids are 1-D and rows are 2-D"),
    (torch.tensor(1), ValueError, "0 dimensions; ids are 1-D and rows are 2-D"),
    (torch.full([2, CLASSES], torch.nan), ValueError, "NaN or infinity in the rows; they must be finite"),
    (torch.full([2, CLASSES], torch.inf), ValueError, "NaN or infinity in the rows; they must be finite"),
    (ROWS[:2].to("meta"), ValueError, "on meta, where tensors have no values"),
    ([0.0, 1.0], TypeError, "1-D labels are class ids and must be integers, not torch.float32"),
    ([True, False], TypeError, "1-D labels are class ids and must be integers, not torch.bool"),
    (ROWS[:2].to(torch.complex64), TypeError, "dtype is torch.complex64; ids are integers and rows are real numbers"),
    (ROWS[:2].to_sparse(), TypeError, "layout is torch.sparse_coo; it must be torch.strided"),
    ({0: 1, 1: 2}, TypeError, "got a dict; labels are in order, one per sample"),
    ({0, 1}, TypeError, "got a set; labels are in order, one per sample"),
    ("01", TypeError, "got '01'; a list of ids or a tensor is needed"),
    (1, TypeError, "got 1; a list of ids or a tensor is needed"),
]


@pytest.mark.parametrize(("labels", "error", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_labels_that_do_not_fit_are_refused(entry, labels, error, message):
    with pytest.raises(error, match=f"^class_labels: {message}"):
        entry(labels)


def test_one_row_is_for_one_image_where_seeds_say_how_many():
    with pytest.raises(ValueError, match="^class_labels: 1 labels for 2 samples$"):
        edm_fast.sample(NET, [1, 2], ROWS[:1], num_steps=1)


def test_a_prepared_network_wants_rows():
    prepared = edm_fast.prepare(NET)
    with pytest.raises(TypeError, match="^class_labels must be a tensor of rows, but it is a list$"):
        prepared(LATENTS, 1.0, [0, 1])
    for labels in (ROWS[:2, :9], ROWS[:3], torch.tensor([0, 1])):
        with pytest.raises(ValueError, match=r"^class_labels must be \[2, 10\] or \[1, 10\], but its shape is"):
            prepared(LATENTS, 1.0, labels)
