"""From a source of images to numbers: batches, kept features, doubtful numbers, and what they tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_networks import tiny as tiny_network
from tolerance import STATISTICS_FLOAT64, assert_same_bits

import edm_fast
from edm_fast import images
from edm_fast.evaluation import (
    Gaussian,
    Measurement,
    SampledImages,
    TensorImages,
    compare,
    digits_features,
    digits_images,
    measure,
    precision_recall,
)
from edm_fast.samplers import random_class
from edm_fast.training.data import load_digits


def random_images(count=20, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, [count, channels, 8, 8], generator=generator, dtype=torch.uint8)


def columns(batch):
    return batch.double().mean(dim=[1, 2])


def known(count, features=2):
    return Measurement(Gaussian(np.zeros(features), np.eye(features)), count)


@pytest.mark.parametrize("batch", [1, 6, 20, 64])
def test_the_batch_does_not_matter(batch):
    source = TensorImages(random_images())
    found, expected = measure(source, columns, batch=batch).gaussian, np.cov(columns(random_images()).T)
    assert np.abs(found.sigma - expected).max() <= STATISTICS_FLOAT64 * np.trace(expected)


def test_features_are_kept_only_on_request():
    source = TensorImages(random_images())
    assert measure(source, columns).features is None
    assert_same_bits(measure(source, columns, batch=7, keep_features=True).features, columns(random_images()))


def test_progress_counts_images():
    calls = []
    measure(TensorImages(random_images()), columns, batch=8, progress=lambda *counts: calls.append(counts))
    assert calls == [(8, 20), (16, 20), (20, 20)]


def test_images_of_too_few_for_the_covariance_are_reported_with_the_numbers():
    assert compare(known(3), known(3)).warnings == []
    assert compare(known(3), known(None)).warnings == []
    [warning] = compare(known(2), known(3)).warnings
    assert warning.startswith("2 images are too few for a covariance of 2 features, which needs at least 3")
    [warning] = compare(known(3), known(2)).warnings
    assert warning.startswith("2 reference images are too few")


def test_precision_is_of_the_images_and_recall_of_the_reference():
    real, made = random_images(20), torch.cat([random_images(10), random_images(30, seed=1) // 8])
    reference = measure(TensorImages(real), columns, keep_features=True)
    result = compare(measure(TensorImages(made), columns, keep_features=True), reference, neighbours=2)
    assert (result.precision, result.recall) == precision_recall(columns(real), columns(made), k=2)
    assert result.precision < result.recall
    assert (result.images, result.reference_images, result.features) == (40, 20, 8)


def test_precision_without_features_is_named():
    with pytest.raises(ValueError, match="neighbours: precision and recall need the features"):
        compare(known(9), known(9), neighbours=3)


def test_images_that_are_not_bytes_are_named():
    with pytest.raises(TypeError, match="images: dtype is torch.float32"):
        TensorImages(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"images: shape is \(1, 8, 8\)"):
        TensorImages(torch.zeros(1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="batch: got 0"):
        measure(TensorImages(random_images()), columns, batch=0)
    with pytest.raises(ValueError, match="images: got 0; a covariance"):
        measure(TensorImages(random_images(0)), columns)


def test_rgb_repeats_grey_and_leaves_colour():
    grey, colour = TensorImages(random_images(3), rgb=True), TensorImages(random_images(3, channels=3), rgb=True)
    assert grey.shape == colour.shape == (3, 8, 8)
    assert_same_bits(torch.cat(list(grey.batches(2))), random_images(3).expand(3, 3, 8, 8))
    assert_same_bits(torch.cat(list(colour.batches(2))), random_images(3, channels=3))


def as_bytes(made):
    return torch.from_numpy(images.to_bytes(made)).permute(0, 3, 1, 2)


def test_sampled_images_are_the_samples_of_their_seeds():
    net = tiny_network(label_dim=5)
    source = SampledImages(net, [3, 9, 4], [1, 0, 4], num_steps=2, S_churn=1)
    expected = as_bytes(edm_fast.sample(net, [3, 9, 4], [1, 0, 4], num_steps=2, S_churn=1))
    assert_same_bits(torch.cat(list(source.batches(2))), expected)
    by_seed = torch.cat(list(SampledImages(net, [3, 9, 4], num_steps=2).batches(2)))
    labels = [random_class(seed, 5) for seed in (3, 9, 4)]
    assert_same_bits(by_seed, as_bytes(edm_fast.sample(net, [3, 9, 4], labels, num_steps=2)))
    with pytest.raises(ValueError, match="class_labels: got 2 for 3 seeds"):
        SampledImages(net, [3, 9, 4], [1, 0])


def test_the_digits_are_all_of_them_in_their_full_range():
    batch = torch.cat(list(digits_images().batches(1000)))
    assert batch.shape == (1797, 1, 8, 8)
    assert (int(batch.min()), int(batch.max())) == (0, 255)
    assert len(batch.unique()) == 17


def test_other_digits_are_nearer_than_what_is_wrong_with_digits():
    """The features see what a model could get wrong: a class that is not there, noise, a place that is off."""
    digits, labels = torch.cat(list(digits_images().batches(1797))), load_digits().labels
    half, other = digits[::2], digits[1::2]
    reference = measure(TensorImages(half), digits_features, batch=899, keep_features=True)

    def evaluation(batch):
        made = measure(TensorImages(batch), digits_features, batch=899, keep_features=True)
        return compare(made, reference, neighbours=3)

    noise = torch.randint(-50, 51, other.shape, generator=torch.Generator().manual_seed(0))
    good = evaluation(other)
    assert good.precision > 0.85
    assert good.recall > 0.85
    assert evaluation(other[labels[1::2] != 7]).frechet_distance > 1.5 * good.frechet_distance
    assert evaluation((other + noise).clamp(0, 255).to(torch.uint8)).frechet_distance > 1.5 * good.frechet_distance
    assert evaluation(other.roll(1, dims=3)).frechet_distance > 20 * good.frechet_distance
    few = evaluation(other[labels[1::2] < 5])
    assert few.precision > 0.85
    assert 0.4 < few.recall < 0.6
