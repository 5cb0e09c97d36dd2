"""Extractors: what they are given, what they must return, and what is named if they do not."""

from __future__ import annotations

import logging
import sys
import types

import pytest
import torch
from tolerance import assert_same_bits

from edm_fast.evaluation import InceptionExtractor, TorchScriptExtractor, digits_features, digits_images, measure
from edm_fast.evaluation import TensorImages as Images
from edm_fast.evaluation.features import device_of, features_of
from edm_fast.evaluation.inception import WEIGHTS

IMAGES = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).reshape(4, 3, 2, 2)


class ChannelMeans(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=[2, 3]) * self.scale


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "means.pt"
    torch.jit.script(ChannelMeans().eval()).save(str(path))
    return path


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ((torch.zeros(4, 2),), TypeError, r"returned tuple, not a tensor; features \[4, F\] of 4 images"),
        (None, TypeError, "returned NoneType"),
        (torch.zeros(3, 2), ValueError, r"returned the shape \(3, 2\)"),
        (torch.zeros(4), ValueError, r"returned the shape \(4,\)"),
        (torch.zeros(4, 2, 1, 1), ValueError, r"returned the shape \(4, 2, 1, 1\)"),
        (torch.zeros(4, 0), ValueError, r"returned the shape \(4, 0\)"),
        (torch.zeros(4, 2, dtype=torch.int64), TypeError, "returned torch.int64"),
    ],
)
def test_what_are_no_features_is_named(returned, error, message):
    with pytest.raises(error, match=f"extractor: {message}"):
        features_of(lambda images: returned, IMAGES)


def test_the_image_whose_features_are_not_finite_is_named_by_its_number():
    def extractor(images):
        return torch.where(images[:, :1, 0, 0] == 24, torch.nan, images.float().mean(dim=[2, 3]))

    with pytest.raises(ValueError, match="extractor: the features of image 2 hold NaN"):
        measure(Images(IMAGES), extractor, batch=2)


def test_an_extractor_gets_bytes_in_order_and_no_gradient():
    seen = []

    def extractor(images):
        seen.append((images, torch.is_grad_enabled()))
        return images.float().mean(dim=[2, 3])

    measure(Images(IMAGES), extractor, batch=3)
    assert not any(gradient for _, gradient in seen)
    assert_same_bits(torch.cat([images for images, _ in seen]), IMAGES)


def test_a_module_in_training_mode_is_reported(caplog):
    with caplog.at_level(logging.WARNING):
        features_of(ChannelMeans().eval(), IMAGES)
        assert not caplog.records
        features_of(ChannelMeans(), IMAGES)
    assert "training mode" in caplog.text


def test_a_module_is_called_where_its_tensors_lie():
    assert device_of(ChannelMeans().to("meta")) == torch.device("meta")
    assert device_of(torch.nn.Linear(1, 1, device="meta")) == torch.device("meta")
    assert device_of(torch.nn.Flatten()) == torch.device("cpu")
    assert device_of(lambda images: images) == torch.device("cpu")


def test_a_torchscript_file_is_an_extractor(script):
    assert_same_bits(TorchScriptExtractor(script)(IMAGES), ChannelMeans()(IMAGES))


def test_a_torchscript_file_saved_while_training_is_called_in_evaluation_mode(tmp_path):
    dropout = torch.nn.Sequential(ChannelMeans(), torch.nn.Dropout(0.9)).train()
    torch.jit.script(dropout).save(str(tmp_path / "dropout.pt"))
    assert_same_bits(TorchScriptExtractor(tmp_path / "dropout.pt")(IMAGES), ChannelMeans()(IMAGES))


def test_files_that_are_not_torchscript_are_named(tmp_path):
    (tmp_path / "net.pt").write_bytes(b"not at all")
    with pytest.raises(ValueError, match="net.pt: is not a TorchScript file"):
        TorchScriptExtractor(tmp_path / "net.pt")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "net.pt")
    with pytest.raises(ValueError, match="net.pt: is not a TorchScript file"):
        TorchScriptExtractor(tmp_path / "net.pt")
    with pytest.raises(FileNotFoundError):
        TorchScriptExtractor(tmp_path / "nowhere.pt")


def test_a_torchscript_file_that_fails_is_named_with_its_images(script):
    with pytest.raises(ValueError, match=r"means.pt: fails on images uint8 \[4, 3, 2\]: .*Dimension out of range"):
        TorchScriptExtractor(script)(IMAGES[..., 0])


def test_digit_features_are_the_pixels_on_the_scale_of_the_data():
    from sklearn.datasets import load_digits

    features = digits_features(torch.cat(list(digits_images().batches(600))))
    assert features.dtype == torch.float64
    # Half a grey level of 255 is 0.03 of 16.
    assert float((features - torch.from_numpy(load_digits().data)).abs().max()) < 0.04


@pytest.mark.parametrize("images", [IMAGES, torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 9, dtype=torch.uint8)])
def test_what_are_no_digits_is_named(images):
    with pytest.raises(ValueError, match="the digits extractor takes grey images of 8×8 pixels"):
        digits_features(images)


class Inception(torch.nn.Module):
    """With the package's constructor and result: it loads whatever it is given, by unpickling."""

    def __init__(self, name, features_list, feature_extractor_weights_path):
        super().__init__()
        assert features_list == ["2048"]
        self.means = ChannelMeans()
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, images):
        return (self.means(images),)


@pytest.fixture
def package(monkeypatch, tmp_path):
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Inception
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints" / WEIGHTS


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ImportError, match=r"pip install 'edm-fast\[evaluate\]'"):
        InceptionExtractor()


def test_inception_weights_are_a_file_and_never_a_download(package, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("a download"))
    with pytest.raises(FileNotFoundError, match=f"weights: there is no file .*{WEIGHTS}"):
        InceptionExtractor()
    torch.save({"means.scale": torch.tensor(5.0)}, package)
    torch.save({"means.scale": torch.tensor(7.0)}, tmp_path / "other.pth")
    assert_same_bits(InceptionExtractor()(IMAGES), IMAGES.float().mean(dim=[2, 3]) * 5)
    assert_same_bits(InceptionExtractor(tmp_path / "other.pth")(IMAGES), IMAGES.float().mean(dim=[2, 3]) * 7)
    with pytest.raises(ValueError, match=r"images: shape is \[4, 1, 2, 2\]; Inception takes \[N, 3, H, W\]"):
        InceptionExtractor()(IMAGES[:, :1])


class Hostile:
    def __reduce__(self):
        return pytest.fail, ("its code was run",)


def test_inception_weights_are_not_unpickled(package):
    torch.save({"means.scale": Hostile()}, package)
    with pytest.raises(ValueError, match=f"{WEIGHTS} does not hold torch-fidelity's Inception weights"):
        InceptionExtractor()


@pytest.mark.parametrize("content", [{"other": torch.zeros(1)}, [1], torch.zeros(3)])
def test_other_weights_are_named(content, package):
    torch.save(content, package)
    with pytest.raises(ValueError, match=f"{WEIGHTS} does not hold torch-fidelity's Inception weights"):
        InceptionExtractor()
    package.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=f"{WEIGHTS} does not hold torch-fidelity's Inception weights"):
        InceptionExtractor()
