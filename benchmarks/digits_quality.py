"""Quality of a network trained on the digits: does it draw what is asked, as varied as the data, and not from memory?

Images are made by the default sampler through the public API, brought to the data's scale of 0 … 16, clipped and not
rounded. Three measures, each over several sets of seeds:

- recognised: the share of images in which a support vector machine, trained on the real training part, sees the
  requested class. Its accuracy on the real held-out part is given beside it.
- Fréchet ratio: d(generated, A) / d(B, A), d the Fréchet distance of Gaussians fitted to the 64 pixels, A and B random
  halves of all real digits and as many generated images as A has; a mean over several halvings. Below 1, the generated
  images are closer to a half of the data than the other half is.
- novelty: the mean distance from a generated image to the nearest training image, over that mean for held-out images.
  A network that repeats its training images has 0.

Exit status 1 says that the mean of a measure misses its threshold.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.svm import SVC

import edm_fast
from edm_fast.checkpoints.native import load_network
from edm_fast.training.data import NUM_CLASSES, load_digits, split_digits

SHIPPED = Path(edm_fast.__file__).parent / "models" / "digits.safetensors"
MIN_RECOGNISED = 0.98
MAX_FRECHET_RATIO = 1.0
MIN_NOVELTY = 0.95


def pixels(images: torch.Tensor) -> np.ndarray:
    """[N, 1, 8, 8] in [-1, 1] → float64 [N, 64] on the data's scale, clipped to 0 … 16."""
    return ((images.double().clamp(-1, 1) + 1) * 8).flatten(1).numpy()


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|μ_a − μ_b|² + tr(Σ_a + Σ_b − 2(Σ_a Σ_b)^½) of rows [N, D]."""
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariance_b @ root).clip(min=0)).sum()
    gap = a.mean(axis=0) - b.mean(axis=0)
    return float(gap @ gap + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross)


def frechet_ratios(generated: np.ndarray, real: np.ndarray, splits: int, seed: int) -> list[float]:
    """d(generated, A)/d(B, A) for `splits` random halvings of `real` and as many draws from `generated`."""
    random = np.random.default_rng(seed)
    ratios = []
    for _ in range(splits):
        order = random.permutation(len(real))
        half, other = real[order[: len(real) // 2]], real[order[len(real) // 2 :]]
        drawn = generated[random.permutation(len(generated))[: len(half)]]
        ratios.append(frechet_distance(drawn, half) / frechet_distance(other, half))
    return ratios


def nearest_distance(images: np.ndarray, training: np.ndarray) -> float:
    """Mean Euclidean distance from each image to the nearest of the training images."""
    return float(torch.cdist(torch.from_numpy(images), torch.from_numpy(training)).amin(dim=1).mean())


def main() -> int:
    """Generate, measure, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=Path, default=SHIPPED, help="an edm_fast safetensors file")
    parser.add_argument("--images", type=int, default=2000, help="images in a set of seeds")
    parser.add_argument("--sets", type=int, default=3, help="sets of seeds")
    parser.add_argument("--splits", type=int, default=10, help="halvings of the real data for each set")
    parser.add_argument("--batch", type=int, default=250)
    arguments = parser.parse_args()
    if arguments.images < 899 or arguments.sets < 2 or arguments.splits < 1:
        parser.error("at least 899 images, 2 sets and 1 split are needed")

    everything, (training, held_out) = load_digits(), split_digits()
    real, known, unknown = pixels(everything.images), pixels(training.images), pixels(held_out.images)
    classifier = SVC(C=10, gamma=0.001).fit(known, training.labels.numpy())
    reference_distance = nearest_distance(unknown, known)
    net = load_network(arguments.network)

    recognised, ratios, novelty = [], [], []
    started = time.perf_counter()
    for index in range(arguments.sets):
        seeds = range(index * arguments.images, (index + 1) * arguments.images)
        labels = torch.arange(arguments.images) % NUM_CLASSES
        images = pixels(edm_fast.sample(net, seeds=seeds, class_labels=labels, batch=arguments.batch))
        recognised.append(float((classifier.predict(images) == labels.numpy()).mean()))
        ratios.append(frechet_ratios(images, real, arguments.splits, seed=index))
        novelty.append(nearest_distance(images, known) / reference_distance)
    seconds = time.perf_counter() - started

    set_ratios = [statistics.fmean(values) for values in ratios]
    all_ratios = [value for values in ratios for value in values]
    rows = [
        ("recognised", recognised, recognised, ">=", MIN_RECOGNISED),
        ("Fréchet ratio", set_ratios, all_ratios, "<=", MAX_FRECHET_RATIO),
        ("novelty", novelty, novelty, ">=", MIN_NOVELTY),
    ]
    print(
        f"{arguments.network.name}: {arguments.sets} × {arguments.images} images, {arguments.splits} halvings of each"
    )
    print(f"classifier on real held-out digits: {classifier.score(unknown, held_out.labels.numpy()):.4f}")
    print(f"{'measure':<15}{'mean':>9}{'std':>9}{'worst':>9}   {'wanted':<9}")
    missed = False
    for name, sets, values, relation, threshold in rows:
        mean = statistics.fmean(sets)
        good = mean >= threshold if relation == ">=" else mean <= threshold
        worst = min(values) if relation == ">=" else max(values)
        missed |= not good
        spread, verdict = statistics.stdev(values), "ok" if good else "MISSED"
        print(f"{name:<15}{mean:>9.4f}{spread:>9.4f}{worst:>9.4f}   {relation} {threshold:<6} {verdict}")
    print(f"{seconds:.0f} s with {torch.get_num_threads()} threads")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
