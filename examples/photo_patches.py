"""A small set of colour images without a download: patches of the photographs that come with scikit-learn.

    python examples/photo_patches.py patches.npz

Each of the two photographs (a temple, a flower) is halved in size and cut into 32×32 patches at random places; the
label of a patch is its photograph. docs/training.md trains a network on them, and shows what comes of it.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from edm_fast.files import atomic_write

EXTENT = 32


def patches(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [count, 32, 32, 3] and int64 labels [count], the photographs in turn."""
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    halved = [np.asarray(photograph.reduce(2)) for photograph in photographs]
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(halved)
    images = np.empty([count, EXTENT, EXTENT, 3], dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        height, width, _ = halved[label].shape
        top, left = random.integers(height - EXTENT + 1), random.integers(width - EXTENT + 1)
        image[:] = halved[label][top : top + EXTENT, left : left + EXTENT]
    return images, labels


@click.command(help="Write patches of two photographs to FILE, an .npz archive that edm-fast train takes.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--count", type=click.IntRange(2), default=4000, show_default=True, help="Number of patches.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of their places.")
def main(file: Path, count: int, seed: int) -> None:
    if file.suffix != ".npz":
        raise click.BadParameter(f"{file} must end in .npz", param_hint="FILE")
    images, labels = patches(count, seed)
    with atomic_write(file) as stream:
        np.savez_compressed(stream, images=images, labels=labels)
    click.echo(f"{file}: {count} images of {EXTENT}x{EXTENT} pixels, {len(np.unique(labels))} labels")


if __name__ == "__main__":
    main()
