"""Inception-v3 features by the package torch-fidelity: those of the Fréchet Inception distance (FID)."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import torch
from torch import Tensor

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


class InceptionExtractor:
    """The 2,048 values of the last pooling layer of torch-fidelity's `FeatureExtractorInceptionV3`.

    That network is a port of the one of 2015 that FID is defined by; it resizes images to 299×299 itself. Nothing is
    downloaded: the weights are a file that the user has. It is read with `weights_only=True`, though the package itself
    would unpickle whatever it holds.

    Args:
        weights: the file; by default WEIGHTS in the checkpoint folder of torch.hub, where the package keeps it.
        device: where the network runs.

    Raises:
        ImportError: the package is missing; says how to install it.
        FileNotFoundError: the weights are; says where they were looked for.
        ValueError: the file does not hold the weights of that network.
    """

    def __init__(self, weights: str | os.PathLike[str] | None = None, device: torch.device | str = "cpu") -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ImportError(
                f"Inception features need the package torch-fidelity, which cannot be imported ({error}): "
                "pip install 'edm-fast[evaluate]'"
            ) from error
        path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS if weights is None else Path(weights)
        if not path.is_file():
            raise FileNotFoundError(f"weights: there is no file {path}; torch-fidelity publishes it as {WEIGHTS}")
        copy = io.BytesIO()
        try:
            torch.save(torch.load(path, map_location="cpu", weights_only=True), copy)
            copy.seek(0)
            network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=copy)
        except (RuntimeError, TypeError, ValueError, AttributeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"weights: {path} does not hold torch-fidelity's Inception weights: {error}") from error
        self._network = network.eval().to(device)
        self._device = device

    def __call__(self, images: Tensor) -> Tensor:
        """Features float32 [N, 2048] of images uint8 [N, 3, H, W]; ValueError for another number of channels."""
        if images.shape[1] != 3:
            raise ValueError(f"images: shape is {list(images.shape)}; Inception takes [N, 3, H, W]")
        return self._network(images.to(self._device))[0]
