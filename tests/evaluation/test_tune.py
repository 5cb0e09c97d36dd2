"""Tuning of churn: the search over any measure, what it says of noise, and the search over images."""

from __future__ import annotations

import math

import pytest
import torch

from edm_fast.evaluation import Churn, Grid, Measurement, SampledImages, TensorImages, Trial, compare, measure, tune
from edm_fast.evaluation.tune import Tuning, estimate, search
from edm_fast.reference.exact_denoisers import GaussianDenoiser

GRID = Grid([0, 5, 10, 20], [0, 0.1, 1], [math.inf, 50, 10], [1, 1.01])
BEST = Churn(10, 0.1, 50, 1.01)


def bowl(churn: Churn) -> list[float]:
    """Least at BEST; separable but for S_churn = 0, which is no part of the bowl."""
    if churn.S_churn == 0:
        return [9.0, 9.5]
    value = abs(churn.S_churn - 10) + 3 * abs(churn.S_min - 0.1) + abs(min(churn.S_max, 80) - 50) / 20
    value += 10 * abs(churn.S_noise - 1.01)
    return [value, value + 0.5]


def channel_features(images: torch.Tensor) -> torch.Tensor:
    """[n, 1]: mean over the image."""
    return images.double().mean(dim=(1, 2, 3))[:, None]


@pytest.fixture
def white() -> GaussianDenoiser:
    return GaussianDenoiser(0.0, 0.25, img_channels=1, img_resolution=2)


@pytest.fixture
def reference(white) -> Measurement:
    pixels = (white.sample(500, torch.Generator().manual_seed(0)) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    return measure(TensorImages(pixels), channel_features)


def test_the_search_finds_the_optimum_of_a_measure():
    tried: list[Churn] = []
    tuning = search(GRID, lambda churn: tried.append(churn) or bowl(churn))
    assert tuning.best.churn == BEST
    assert len(tried) == len(set(tried)) == len(tuning.trials) <= GRID.most_trials
    assert len(tried) < 4 * 3 * 3 * 2 / 3


def test_the_last_pass_over_S_churn_uses_what_the_others_came_to():
    """The best S_churn is another one once S_noise has moved."""

    def coupled(churn: Churn) -> list[float]:
        return [-1 - churn.S_churn / 100 if churn.S_noise > 1 else abs(churn.S_churn - 5)]

    assert search(GRID, coupled).best.churn[::3] == (20, 1.01)


def test_no_churn_is_tried_first_even_if_the_grid_lacks_it():
    tuning = search(Grid([5], [0], [math.inf], [1]), bowl)
    assert [trial.churn.S_churn for trial in tuning.trials] == [0, 5]
    assert tuning.deterministic.distances == (9.0, 9.5)
    assert [trial.churn for trial in search(Grid([0]), bowl).trials] == [Churn()]


def test_the_search_goes_on_from_the_best_that_adds_noise_where_none_is_best():
    def worse(churn: Churn) -> list[float]:
        return [churn.S_churn - 7 * (churn.S_noise - 1)]

    tuning = search(GRID, worse)
    assert Churn(5, S_noise=1.01) in [trial.churn for trial in tuning.trials]
    assert tuning.best is tuning.deterministic
    assert tuning.gain.within_noise is None


def test_settings_that_make_the_same_images_are_tried_once():
    tried: list[Churn] = []
    same = {50.0: math.inf}
    search(
        GRID,
        lambda churn: tried.append(churn) or bowl(churn),
        same=lambda churn: churn._replace(S_max=same.get(churn.S_max, churn.S_max)) if churn.S_churn else 0,
    )
    assert {churn.S_max for churn in tried} == {math.inf, 10}


def test_a_range_without_noise_levels_does_not_end_the_search():
    """S_max below every level is the deterministic sampler, here the best; S_noise is searched all the same."""

    def same(churn: Churn) -> Churn:
        return Churn() if churn.S_max < 1 or churn.S_churn == 0 else churn

    tuning = search(Grid([5], [0], [math.inf, 0.5], [1, 1.01]), lambda churn: [churn.S_churn], same=same)
    assert [trial.churn for trial in tuning.trials] == [Churn(), Churn(5), Churn(5, S_noise=1.01)]


def test_known_trials_are_taken_as_they_are():
    whole = search(GRID, bowl)
    tried: list[Churn] = []
    again = search(GRID, lambda churn: tried.append(churn) or bowl(churn), known=whole.trials[:6])
    assert again == whole
    assert tried == [trial.churn for trial in whole.trials[6:]]


def test_a_standard_error_is_that_of_a_mean():
    found = estimate([1.0, 2.0, 4.0, 5.0])
    assert (found.mean, found.standard_error) == (3.0, pytest.approx(math.sqrt(10 / 3) / 2))
    assert estimate([1.0]).standard_error is None


@pytest.mark.parametrize(("gap", "within"), [(2.9, True), (3.5, False)])
def test_a_difference_is_noise_up_to_students_quantile(gap, within):
    """Three degrees of freedom: 3.182 standard errors, here of 1."""
    spread = math.sqrt(3)
    noise = [spread, -spread, spread, -spread]
    a, b = Trial(Churn(5), tuple(gap + each for each in noise)), Trial(Churn(), (0.0,) * 4)
    assert a.difference(b).standard_error == pytest.approx(1)
    assert a.difference(b).within_noise is within


def test_differences_are_of_equal_seeds():
    """Sets that differ by 100 from each other, in both trials alike."""
    a, b = Trial(Churn(5), (1.0, 101.0, 201.1)), Trial(Churn(), (2.0, 102.0, 202.0))
    assert a.distance.standard_error > 50
    assert Tuning((b, a)).best is a
    assert Tuning((b, a)).gain.within_noise is False


@pytest.mark.parametrize(
    ("lists", "error", "message"),
    [
        ({"S_churn": []}, ValueError, "S_churn: got no value"),
        ({"S_churn": [-1]}, ValueError, "S_churn: got -1"),
        ({"S_noise": [math.inf]}, ValueError, "S_noise: got inf"),
        ({"S_min": [math.nan]}, ValueError, "S_min: got NaN"),
        ({"S_max": ["x"]}, TypeError, "S_max: got 'x'"),
    ],
)
def test_bad_grids_are_named(lists, error, message):
    with pytest.raises(error, match=message):
        Grid(**{"S_churn": [0], **lists})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"images": 1}, ValueError, "images: got 1"),
        ({"sets": 0}, ValueError, "sets: got 0"),
        ({"batch": 2.5}, TypeError, "batch: got 2.5"),
        ({"num_steps": 0}, ValueError, "num_steps: got 0"),
        ({"S_churn": 3}, TypeError, "S_churn: is searched for"),
        ({"rho": -1}, ValueError, "rho: got -1"),
        ({"class_id": 3}, ValueError, "class_labels: given, and the network is unconditional"),
    ],
)
def test_bad_arguments_are_named(white, reference, options, error, message):
    with pytest.raises(error, match=message):
        tune(white, reference, channel_features, **options)


def test_the_default_grid_raises_noise_by_shares_up_to_the_most_there_is():
    assert Grid.for_steps(32).S_churn == (0, 2, 4, 8, pytest.approx(32 * (math.sqrt(2) - 1), abs=1e-4))


def test_trials_are_what_sampling_and_comparing_by_hand_gives(white, reference):
    options = {"num_steps": 3, "solver": "euler"}
    reports: list[Trial] = []
    progress: list[tuple[int, int]] = []
    tuning = tune(
        white,
        reference,
        channel_features,
        grid=Grid([1.0, 50.0, 60.0], [0], [math.inf, 100.0], [1, 0.5]),
        images=20,
        sets=2,
        first_seed=7,
        batch=16,
        report=reports.append,
        progress=lambda churn, done, total: progress.append((done, total)),
        **options,
    )
    assert list(tuning.trials) == reports
    # 50 and 60 are cut to the same, and 100 is above every level.
    assert {trial.churn.S_churn for trial in tuning.trials} == {0, 1, 50}
    assert {trial.churn.S_max for trial in tuning.trials} == {math.inf}
    assert progress[:4] == [(16, 40), (20, 40), (36, 40), (40, 40)]
    for trial in tuning.trials:
        for index, distance in enumerate(trial.distances):
            seeds = range(7 + 20 * index, 27 + 20 * index)
            source = SampledImages(white, seeds, **options, **trial.churn._asdict())
            assert compare(measure(source, channel_features), reference).frechet_distance == pytest.approx(distance)


def test_the_exact_denoiser_is_best_with_noise_as_strong_as_it_is_taken_away(white, reference):
    """With so many steps that the solver has no part in it: other S_noise give a wrong spread, which is seen."""
    grid = Grid([20.0], [0], [math.inf], [0.5, 1.0, 1.5])
    tuning = tune(white, reference, channel_features, grid=grid, images=400, sets=3, num_steps=60, batch=400)
    wrong, right, strong = sorted(tuning.trials[1:], key=lambda trial: trial.churn.S_noise)
    assert right.churn.S_noise == 1.0
    assert max(right.distance.mean, tuning.deterministic.distance.mean) < 2
    for other in (wrong, strong):
        assert other.distance.mean > 10 * right.distance.mean
        assert other.difference(right).within_noise is False
