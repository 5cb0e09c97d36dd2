"""Search for the parameters of churn by a network's own distance from a reference.

Karras et al. 2022 (arXiv 2206.00364, section 4) find that S_churn, S_min, S_max and S_noise must be set for each
network by a grid search, with the noise levels of the steps fixed. The whole grid is large. This search moves along one
parameter at a time, over the values of its list, from the first values of the others:

    S_churn, then S_max, S_min and S_noise at the best S_churn above 0, then S_churn again at what they came to.

Four lists of 5, 4, 3 and 3 values take 5 + 3 + 2 + 2 + 4 = 16 trials in place of 180. S_churn = 0, the deterministic
sampler, is always the first of them. Settings that make the same solver table as others (S_churn above
num_steps·(√2 − 1), an S_max above every level) make the same images and count as those: they are not tried.

Every trial makes images of the same sets of seeds, so that what chance gives a set counts for all trials alike, and the
differences between trials are known better than the distances. A difference is *within noise* if its mean over the sets
is below Student's 97.5 % quantile times its standard error.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple

from edm_fast.evaluation.features import Extractor
from edm_fast.evaluation.measure import Measurement, compare, measure
from edm_fast.evaluation.sources import SampledImages
from edm_fast.samplers import edm_table
from edm_fast.samplers.arguments import check_churn, check_count

# Student's 97.5 % quantile for 1, 2, … degrees of freedom, and the normal one for more.
_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL_QUANTILE = 1.96


class Churn(NamedTuple):
    """The four parameters, as `edm_fast.sample` takes them."""

    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0


@dataclass(frozen=True)
class Grid:
    """The values to try of each parameter; the first of S_min, S_max and S_noise are where the search begins.

    ValueError or TypeError, naming the parameter, for an empty list and for values that the samplers refuse.
    """

    S_churn: Sequence[float]
    S_min: Sequence[float] = (0.0, 0.05, 0.5)
    S_max: Sequence[float] = (math.inf, 50.0, 10.0, 1.0)
    S_noise: Sequence[float] = (1.0, 1.003, 1.007)

    def __post_init__(self) -> None:
        for name in Churn._fields:
            values = getattr(self, name)
            if len(values) == 0:
                raise ValueError(f"{name}: got no value; at least one is needed")
            for value in values:
                check_churn(*Churn()._replace(**{name: value}))
            object.__setattr__(self, name, tuple(dict.fromkeys(map(float, values))))

    @classmethod
    def for_steps(cls, num_steps: int) -> Grid:
        """Noise raised by 0, 1/16, 1/8, 1/4 and √2 − 1, the most there is, in each of the steps."""
        return cls([0.0, *(round(num_steps * gamma, 4) for gamma in (1 / 16, 1 / 8, 1 / 4, math.sqrt(2) - 1))])

    @property
    def most_trials(self) -> int:
        """No search tries more."""
        others = sum(len(getattr(self, name)) - 1 for name in ("S_min", "S_max", "S_noise"))
        return 1 + others + 2 * sum(value > 0 for value in self.S_churn)


@dataclass(frozen=True)
class Estimate:
    """A mean over sets of seeds. `standard_error` is None for a single set, of which nothing is known."""

    mean: float
    standard_error: float | None
    sets: int

    @property
    def within_noise(self) -> bool | None:
        """Whether 0 is a mean that these sets do not rule out, at 95 %; None for a single set."""
        if self.standard_error is None:
            return None
        freedom = self.sets - 1
        quantile = _QUANTILES[freedom - 1] if freedom <= len(_QUANTILES) else _NORMAL_QUANTILE
        return abs(self.mean) <= quantile * self.standard_error


def estimate(values: Sequence[float]) -> Estimate:
    """Of independent values."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(statistics.fmean(values), error, len(values))


@dataclass(frozen=True)
class Trial:
    """Settings and the Fréchet distance of each set of seeds."""

    churn: Churn
    distances: tuple[float, ...]

    @property
    def distance(self) -> Estimate:
        """Mean over the sets."""
        return estimate(self.distances)

    def difference(self, other: Trial) -> Estimate:
        """Of this trial's distance from the other's, set by set; below 0 this one is nearer to the reference."""
        return estimate([a - b for a, b in zip(self.distances, other.distances, strict=True)])


@dataclass(frozen=True)
class Tuning:
    """What a search found: all trials in its order, the deterministic one first."""

    trials: tuple[Trial, ...]

    @property
    def deterministic(self) -> Trial:
        """S_churn = 0."""
        return self.trials[0]

    @property
    def best(self) -> Trial:
        """The least mean distance; of equal ones the first.

        It is the luckiest of several, so its distance is a little too low: other seeds say how good it is.
        """
        return min(self.trials, key=lambda trial: trial.distance.mean)

    @property
    def gain(self) -> Estimate:
        """Distance of the best trial less that of the deterministic one; 0 if they are the same."""
        return self.best.difference(self.deterministic)


def search(
    grid: Grid,
    measure_churn: Callable[[Churn], Sequence[float]],
    *,
    same: Callable[[Churn], Hashable] = lambda churn: churn,
    known: Iterable[Trial] = (),
    report: Callable[[Trial], object] | None = None,
) -> Tuning:
    """The search that the module describes, for any measure.

    Args:
        measure_churn: distances of the sets of seeds for these settings; called once for each.
        same: settings of which this is equal give equal images. All with S_churn = 0 must have the same.
        known: trials of an earlier search, which are taken as they are.
        report: called with each trial when it is done, known or not.
    """
    at_hand = {same(trial.churn): trial for trial in known}
    tried: dict[Hashable, Trial] = {}

    def trial_of(churn: Churn) -> Trial:
        key = same(churn)
        if key not in tried:
            found = at_hand.get(key)
            distances = found.distances if found is not None else tuple(measure_churn(churn))
            tried[key] = Trial(churn, distances)
            if report is not None:
                report(tried[key])
        return tried[key]

    def best_along(name: str, here: Churn) -> Churn:
        """Of the settings that differ in one parameter and do add noise: where none is added, the other parameters have
        no effect, and the search would end.
        """
        along = [here._replace(**{name: value}) for value in getattr(grid, name)]
        noisy = [churn for churn in along if churn.S_churn > 0 and same(churn) != same(Churn())]
        return min(noisy, key=lambda churn: trial_of(churn).distance.mean, default=here)

    trial_of(Churn())
    if any(value > 0 for value in grid.S_churn):
        here = Churn(0.0, grid.S_min[0], grid.S_max[0], grid.S_noise[0])
        for name in ("S_churn", "S_max", "S_min", "S_noise", "S_churn"):
            here = best_along(name, here)
    return Tuning(tuple(tried.values()))


def tune(
    net: Any,
    reference: Measurement,
    extractor: Extractor,
    *,
    grid: Grid | None = None,
    images: int = 1000,
    sets: int = 3,
    first_seed: int = 0,
    class_id: int | None = None,
    num_steps: int = 18,
    rgb: bool = False,
    batch: int = 64,
    known: Iterable[Trial] = (),
    report: Callable[[Trial], object] | None = None,
    progress: Callable[[Churn, int, int], object] | None = None,
    **options: Any,
) -> Tuning:
    """The settings of churn whose images are nearest to the reference, by the Fréchet distance of their features.

    Args:
        net: a network of this library, or another with img_channels and img_resolution.
        reference: what to be near to, by the same extractor.
        extractor: makes features [n, F] of images uint8 [n, C, H, W]; more images than F are needed in a set.
        grid: what to try; `Grid.for_steps(num_steps)` by default.
        images, sets: number of images in a set of seeds, and of sets. Set k begins at seed first_seed + k·images.
        class_id: class of all images; by default a random one for each seed, as `edm-fast generate` takes it.
        num_steps, options: those of `edm_fast.sample`, the same for every trial; not those of churn.
        rgb: repeat grey images to three channels.
        batch: images at a time.
        known, report: as `search` has them.
        progress: called with (settings, images done, images in the trial) after each batch.

    Raises:
        ValueError, TypeError: an argument out of range; names it.
        And what sampling, the extractor and `compare` raise.
    """
    for name, count in (("images", images), ("sets", sets), ("batch", batch), ("num_steps", num_steps)):
        check_count(name, count)
    given = sorted(set(Churn._fields) & set(options))
    if given:
        raise TypeError(f"{given[0]}: is searched for; its values are those of the grid")
    grid = Grid.for_steps(num_steps) if grid is None else grid

    # Guidance and the like are not the table's, and the same for all trials.
    of_table = {name: value for name, value in options.items() if name in signature(edm_table).parameters}

    def table_of(churn: Churn) -> Hashable:
        table = edm_table(net, num_steps=num_steps, **of_table, **churn._asdict())
        return table.updates.tobytes(), table.sigma.tobytes()

    def distances(churn: Churn) -> Iterator[float]:
        for index in range(sets):
            seeds = range(first_seed + index * images, first_seed + (index + 1) * images)
            labels = None if class_id is None else [class_id] * images
            source = SampledImages(net, seeds, labels, rgb, num_steps=num_steps, **options, **churn._asdict())

            def done(count: int, _: int, before: int = index * images) -> None:
                if progress is not None:
                    progress(churn, before + count, sets * images)

            made = measure(source, extractor, batch=batch, progress=done)
            yield compare(made, reference).frechet_distance

    return search(grid, lambda churn: tuple(distances(churn)), same=table_of, known=known, report=report)
