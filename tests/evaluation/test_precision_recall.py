"""Precision and recall of sets for which they are known by hand."""

from __future__ import annotations

import pytest
import torch

from edm_fast.evaluation import precision_recall


def cluster(centre, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=generator) + torch.tensor([float(centre), 0, 0])


def line(*places):
    return torch.tensor([[float(place)] for place in places])


def test_identical_sets_are_precise_and_complete():
    images = cluster(0, 30)
    assert precision_recall(images, images) == (1, 1)


def test_sets_far_apart_are_neither():
    assert precision_recall(cluster(0, 30), cluster(1000, 30)) == (0, 0)


def test_half_of_the_modes_is_half_of_the_recall():
    near = cluster(0, 20)
    assert precision_recall(torch.cat([near, cluster(1000, 20)]), near) == (1, 0.5)


def test_a_mode_that_is_not_there_costs_precision():
    near = cluster(0, 20)
    assert precision_recall(near, torch.cat([near, cluster(1000, 60)])) == (0.25, 1)


def test_balls_reach_to_the_kth_other_image_and_are_closed():
    """At 0, 1, 3, 7: radii for k = 1 are 1, 1, 2, 4, for k = 2 3, 2, 3, 6."""
    real = line(0, 1, 3, 7)
    # -1 and 11 lie on the edge of a ball, -1.5 and 11.5 outside; the generated balls have radii 0.5 or 10 and more.
    generated = line(-1, -1.5, 11, 11.5)
    assert precision_recall(real, generated, k=1) == (0.5, 0)
    assert precision_recall(real, generated, k=2) == (1, 1)


def test_it_is_not_symmetric():
    wide, narrow = line(-30, -10, 10, 30), line(-0.2, -0.1, 0.1, 0.2)
    assert precision_recall(wide, narrow, k=1) == (1, 0)
    assert precision_recall(narrow, wide, k=1) == (0, 1)


def test_copies_of_one_image_make_a_ball_without_extent():
    copies = 1000 + torch.rand(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64).repeat(40, 1)
    assert precision_recall(copies, copies) == (1, 1)
    assert precision_recall(copies, copies + 1e-9) == (0, 0)


@pytest.mark.parametrize("block", [1, 2, 7, 25, 1000])
def test_blocks_do_not_matter(block):
    real, generated = cluster(0, 25), cluster(1.5, 31, seed=1)
    whole = precision_recall(real, generated)
    assert 0 < whole.precision < 1
    assert 0 < whole.recall < 1
    assert precision_recall(real, generated, block=block) == whole


def test_it_agrees_with_the_definition_written_out():
    real, generated = cluster(0, 25), cluster(1.5, 31, seed=1)

    def covered(points, centres):
        to_centres = torch.cdist(centres.double(), centres.double()).sort(dim=1).values[:, 3]
        return float((torch.cdist(points.double(), centres.double()) <= to_centres).any(dim=1).double().mean())

    assert precision_recall(real, generated) == pytest.approx((covered(generated, real), covered(real, generated)))


def test_memory_is_bounded_by_the_block(monkeypatch):
    sizes = []
    cdist = torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda a, b, **how: sizes.append((len(a), len(b))) or cdist(a, b, **how))
    precision_recall(cluster(0, 100), cluster(0, 70), block=16)
    assert max(max(pair) for pair in sizes) == 16


@pytest.mark.parametrize(
    ("real", "generated", "options", "message"),
    [
        (torch.zeros(4), torch.zeros(4, 2), {}, r"real: shape is \(4,\)"),
        (torch.zeros(4, 2), torch.zeros(4, 2, 1), {}, r"generated: shape is \(4, 2, 1\)"),
        (torch.zeros(4, 2), torch.zeros(4, 3), {}, "generated: 3 features; real has 2"),
        (
            torch.zeros(4, 2),
            torch.zeros(3, 2),
            {},
            "k: got 3; it must be at least 1 and below the 3 images of generated",
        ),
        (torch.zeros(4, 2), torch.zeros(4, 2), {"k": 0}, "k: got 0"),
        (torch.zeros(4, 2), torch.zeros(4, 2), {"block": 0}, "block: got 0"),
    ],
)
def test_wrong_arguments_are_named(real, generated, options, message):
    with pytest.raises(ValueError, match=message):
        precision_recall(real, generated, **options)
