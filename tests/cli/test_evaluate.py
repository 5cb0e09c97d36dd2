"""edm-fast evaluate: sources, references and options, and what is refused before any work."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import edm_fast
from edm_fast.cli import main
from edm_fast.cli.evaluate import evaluate
from edm_fast.evaluation import read_statistics

SEEDS = ("--seeds", "0-69")


def invoke(*arguments, expect=0):
    result = CliRunner().invoke(main, ["evaluate", *map(str, arguments)])
    assert result.exit_code == expect, result.output
    return result


def numbers(*arguments):
    return json.loads(invoke(*arguments, "--json").stdout)


def error(*arguments, expect=2):
    return " ".join(invoke(*arguments, expect=expect).stderr.split())


def save(folder, count=4, shape=(8, 8), seed=0):
    folder.mkdir()
    random = np.random.default_rng(seed)
    for index in range(count):
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


class Means(torch.nn.Module):
    """Features [N, C + 1]: the mean of each channel, and the first pixel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scaled = images.double()
        return torch.cat([scaled.mean(dim=[2, 3]), scaled[:, :1, 0, 0]], dim=1)


@pytest.fixture(scope="session")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "means.pt"
    torch.jit.script(Means()).save(str(path))
    return path


@pytest.fixture
def no_work(monkeypatch):
    """Neither an image nor a feature is made."""
    monkeypatch.setitem(evaluate.callback.__globals__, "measure", lambda *_, **__: pytest.fail("work was done"))


def test_the_shipped_model_is_far_nearer_to_the_digits_than_noise(tmp_path):
    made = numbers(*SEEDS, "--ref", "digits", "--precision-recall")
    noise = numbers("--images", save(tmp_path / "noise", 70), "--ref", "digits", "--precision-recall")
    assert made["images"] == noise["images"] == 70
    assert made["frechet_distance"] < noise["frechet_distance"] / 10
    assert made["precision"] > 0.7
    assert made["recall"] > 0.7
    assert (noise["precision"], noise["recall"]) == (0, 0)


def test_a_folder_and_its_seeds_give_the_same_numbers(tmp_path):
    options = (*SEEDS, "--steps", "4", "--S_churn", "3", "--class", "4")
    made = CliRunner().invoke(main, ["generate", *options, "--outdir", str(tmp_path / "out"), "--grid"])
    assert made.exit_code == 0, made.output
    measures = ("--ref", "digits", "--precision-recall")
    from_folder = numbers("--images", tmp_path / "out", *measures)
    assert from_folder == numbers(*options, *measures)
    assert from_folder == numbers(*options, *measures)


def test_a_written_reference_stands_for_its_images(tmp_path, script):
    images, real = save(tmp_path / "images", seed=1), save(tmp_path / "real", 5)
    options = ("--extractor", script)
    written = tmp_path / "ref.npz"
    assert invoke("--ref", real, "--write-ref", written, *options).stdout == ""
    direct = numbers("--images", images, "--ref", real, *options)
    by_file = numbers("--images", images, "--ref", written, *options)
    assert by_file["frechet_distance"] == direct["frechet_distance"] > 0
    assert (direct["reference_images"], by_file["reference_images"]) == (5, None)
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(real.iterdir())]).astype(float)
    features = np.stack([pixels.mean(axis=(1, 2)), pixels[:, 0, 0]], axis=1)
    assert read_statistics(written).mu == pytest.approx(features.mean(axis=0))


def test_a_reference_is_written_beside_an_evaluation_too(tmp_path, script):
    real = save(tmp_path / "real")
    result = numbers("--images", real, "--ref", real, "--extractor", script, "--write-ref", tmp_path / "ref.npz")
    assert result["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert read_statistics(tmp_path / "ref.npz").mu.shape == (2,)


def test_lines_and_json_say_the_same(tmp_path, script):
    arguments = ("--images", save(tmp_path / "a", seed=1), "--ref", save(tmp_path / "b", 5), "--extractor", script)
    arguments += ("--precision-recall", "--neighbours", "2")
    found = numbers(*arguments)
    lines = [line.split(maxsplit=1) for line in invoke(*arguments).stdout.splitlines()]
    assert [name for name, _ in lines] == [name for name in found if name != "warnings"]
    for name, text in lines:
        assert text == (f"{found[name]:.6g}" if isinstance(found[name], float) else str(found[name]))
    assert found["neighbours"] == 2
    assert found["warnings"] == []


def test_too_few_images_are_reported_with_the_numbers(tmp_path, script):
    result = invoke("--images", save(tmp_path / "a", 2), "--ref", save(tmp_path / "b"), "--extractor", script, "--json")
    wanted = "2 images are too few for a covariance of 2 features, which needs at least 3"
    assert f"warning: {wanted}" in result.stderr
    assert json.loads(result.stdout)["warnings"][0].startswith(wanted)


def test_grey_images_reach_the_extractor_with_three_channels_by_rgb(tmp_path, script):
    images, real = save(tmp_path / "a"), save(tmp_path / "b", 5, shape=(8, 8, 3))
    arguments = ("--images", images, "--ref", real, "--extractor", script)
    assert "--ref: the images are [1, 8, 8] (C, H, W), the reference [3, 8, 8]" in error(*arguments)
    assert numbers(*arguments, "--rgb")["features"] == 4
    assert numbers("--images", images, "--ref", "digits", "--extractor", script, "--rgb")["features"] == 4
    assert numbers("--seeds", "0-9", "--steps", "1", "--ref", "digits", "--extractor", script, "--rgb")["features"] == 4


def test_another_network_makes_the_images(tiny, tmp_path, script):
    real = save(tmp_path / "real", shape=(8, 8, 3))
    options = ("--network", tiny, "--seeds", "0-5", "--steps", "2")
    found = numbers(*options, "--ref", real, "--extractor", script)
    assert found["features"] == 4
    assert numbers(*options, "--batch", "4", "--ref", real, "--extractor", script)["frechet_distance"] == pytest.approx(
        found["frechet_distance"]
    )
    message = error(*options, "--class", "0", "--ref", real, "--extractor", script)
    assert "--class: the network is unconditional" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing option '--ref'"),
        (("--ref", "digits"), "--images or --seeds is needed, or --write-ref"),
        (("--ref", "digits", "--images", ".", "--seeds", "1"), "--images or --seeds: give one of them"),
        (("--ref", "digits", "--images", ".", "--network", __file__), "--network means nothing without --seeds"),
        (("--ref", "digits", "--images", ".", "--class", "1"), "--class means nothing without --seeds"),
        (("--ref", "digits", "--images", ".", "--steps", "18"), "--steps means nothing without --seeds"),
        (("--ref", "digits", "--images", ".", "--S_churn", "1"), "--S_churn means nothing without --seeds"),
        (("--ref", "digits", "--images", ".", "--neighbours", "3"), "--neighbours means nothing without --precision"),
        (("--ref", "digits", "--images", ".", "--weights", __file__), "--weights means nothing without"),
        (("--ref", "digits", "--write-ref", "o.npz", "--precision-recall"), "--precision-recall means nothing without"),
        (("--ref", __file__, "--images", ".", "--precision-recall"), "--ref: precision and recall need images"),
        (("--ref", "digits", "--seeds", "1", "--class", "10"), "--class: 10 is not one of the classes 0 to 9"),
        (("--ref", "digits", "--seeds", "1-2", "--rho", "0.001"), "rho"),
        (("--ref", "digits", "--seeds", "1-2", "--steps", "0"), "--steps"),
        (("--ref", "digits", "--seeds", "x"), "--seeds"),
        (("--ref", "nowhere.npz", "--seeds", "1-2"), "'--ref': Path 'nowhere.npz' does not exist"),
        (("--ref", "digits", "--images", "nowhere"), "--images"),
        (("--ref", "digits", "--images", __file__), "--images"),
        (("--ref", "digits", "--seeds", "1-2", "--extractor", "resnet"), "--extractor"),
        (("--ref", "digits", "--seeds", "1-2", "--network", "nowhere"), "--network"),
    ],
)
def test_options_that_contradict_or_do_nothing_are_refused(arguments, message, no_work):
    found = error(*arguments).replace('"', "'").replace("'--class'", "--class").replace("'--ref': p", "--ref: p")
    assert message in found


def test_a_bad_folder_is_named_before_any_work(tmp_path, no_work):
    folder = save(tmp_path / "a")
    (folder / "labels.csv").write_text("0,1")
    assert "labels.csv: is not a PNG or JPEG image" in error("--images", folder, "--ref", "digits", expect=1)
    assert "labels.csv" in error("--seeds", "1-2", "--ref", folder, expect=1)


def test_faults_of_files_are_messages(tmp_path):
    folder, bad = save(tmp_path / "a"), tmp_path / "bad.file"
    bad.write_bytes(b"nothing of the kind")
    assert "bad.file: is not an .npz file" in error("--images", folder, "--ref", bad, expect=1)
    message = error("--images", folder, "--ref", "digits", "--extractor", bad, expect=1)
    assert "bad.file: is not a TorchScript file" in message
    assert "bad.file" in error("--seeds", "1-2", "--network", bad, "--ref", "digits", expect=1)
    message = error("--images", folder, "--ref", "digits", "--write-ref", tmp_path / "no" / "ref.npz", expect=1)
    assert "ref.npz" in message
    assert "No such file" in message


def test_an_extractor_that_returns_nonsense_is_named(tmp_path):
    class Pixels(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float()

    torch.jit.script(Pixels()).save(str(tmp_path / "pixels.pt"))
    folder = save(tmp_path / "a")
    message = error("--images", folder, "--ref", folder, "--extractor", tmp_path / "pixels.pt", expect=1)
    assert "extractor: returned the shape (4, 1, 8, 8); features [4, F] of 4 images are needed" in message


def test_the_digits_extractor_refuses_other_images(tmp_path):
    folder = save(tmp_path / "a", shape=(16, 16))
    assert "takes grey images of 8×8 pixels" in error("--images", folder, "--ref", folder, expect=1)


def test_inception_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    message = error("--seeds", "1-2", "--ref", "digits", "--extractor", "inception", expect=1)
    assert "pip install 'edm-fast[evaluate]'" in message


def test_images_that_are_not_finite_are_an_error_that_names_the_seeds(tmp_path):
    net = edm_fast.load()
    with torch.no_grad():
        net.model.dec["8x8_aux_conv"].weight.fill_(torch.nan)
    path = tmp_path / "broken.safetensors"
    from edm_fast.checkpoints import save_network

    save_network(net, path)
    message = error("--network", path, "--seeds", "7,8", "--steps", "1", "--ref", "digits", expect=1)
    assert "7, 8" in message
