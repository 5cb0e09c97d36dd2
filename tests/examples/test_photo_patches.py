"""examples/photo_patches.py: patches that are in the photographs, and that the runs of docs/training.md take."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from sklearn.datasets import load_sample_images

import edm_fast
from edm_fast.cli import main
from edm_fast.training.data import open_data


def written(path):
    with np.load(path) as archive:
        return archive["images"], archive["labels"]


def test_patches_are_cut_from_the_photographs_of_their_labels(run_elsewhere, tmp_path):
    assert "5 images of 32x32 pixels, 2 labels" in run_elsewhere("photo_patches", "patches.npz", "--count", 5)
    images, labels = written(tmp_path / "patches.npz")
    assert images.shape == (5, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.tolist() == [0, 1, 0, 1, 0]
    places = set()
    for image, label in zip(images, labels, strict=True):
        photograph = np.asarray(Image.fromarray(load_sample_images().images[label]).reduce(2))
        windows = sliding_window_view(photograph, (32, 32), axis=(0, 1))
        found = np.argwhere((windows == image.transpose(2, 0, 1)).all(axis=(2, 3, 4)))
        assert len(found) == 1
        places.add((label, *found[0]))
    assert len(places) == 5
    data = open_data(str(tmp_path / "patches.npz"))
    assert (len(data), data.label_dim) == (5, 2)


def test_a_seed_gives_its_patches(run_elsewhere, tmp_path):
    for name, seed in (("a.npz", 1), ("b.npz", 1), ("c.npz", 2)):
        run_elsewhere("photo_patches", name, "--count", 4, "--seed", seed)
    a, b, c = (written(tmp_path / name)[0] for name in ("a.npz", "b.npz", "c.npz"))
    assert (a == b).all()
    assert (a != c).any()


def test_another_kind_of_file_is_refused(example, tmp_path):
    result = CliRunner().invoke(example("photo_patches").main, [str(tmp_path / "patches.zip")])
    assert result.exit_code == 2
    assert "must end in .npz" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("preset", "precond"), [("ddpmpp", "edm"), ("ddpmpp", "vp"), ("ncsnpp", "ve")])
def test_every_run_of_the_page_in_short(example, tmp_path, preset, precond):
    """With augmentations and their labels, dropout, an average and a grid."""
    runner, data, run = CliRunner(), tmp_path / "patches.npz", tmp_path / "run"
    assert runner.invoke(example("photo_patches").main, [str(data), "--count", "8"]).exit_code == 0
    settings = (
        f"train --data {data} --outdir {run} --preset cifar10-{preset} --precond {precond} --duration 0.016 "
        "--batch 8 --channels 8 --lr 2e-3 --warmup 0 --decay cosine --ema 0.01 --dropout 0.1 --augment 0.12 "
        "--snapshot 0.016 --grid 2"
    )
    result = runner.invoke(main, settings.split())
    assert result.exit_code == 0, result.output
    assert len(list(run.glob("samples-*.png"))) >= 1
    net = edm_fast.load(run / "network.safetensors")
    assert type(net).__name__ == {"edm": "EDMPrecond", "vp": "VPPrecond", "ve": "VEPrecond"}[precond]
    assert net.model.augment_dim == 9
    assert net.label_dim == 2
