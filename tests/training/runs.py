"""Small training runs."""

from __future__ import annotations

import torch

from edm_fast.training.config import TrainConfig
from edm_fast.training.data import ImageData
from edm_fast.training.data.image_data import ArrayData
from edm_fast.training.data.labels import Labels
from edm_fast.training.loop import Trainer
from edm_fast.training.run import Run

NETWORK = {
    "model_type": "SongUNet",
    "model_channels": 16,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
}
CONFIG = TrainConfig(duration=32 * 8, batch=32, warmup=64, network=NETWORK)


class StopAfter:
    """Asks for an end after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def colour_data(count: int = 40, fingerprint: str = "colour") -> ImageData:
    """uint8 [count, 3, 8, 8] in two classes."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, [count, 3, 8, 8], generator=generator, dtype=torch.uint8)
    return ArrayData("colour", images, Labels(torch.arange(count) % 2, 2), fingerprint)


def run(config: TrainConfig, data: ImageData, outdir, grid: int = 0, **options) -> Trainer:
    outdir.mkdir(exist_ok=True)
    made = Run(Trainer(config, data), outdir, grid)
    made.resume()
    made.go(progress=False, **options)
    return made.trainer


def weights(trainer: Trainer) -> torch.Tensor:
    """All of the network's weights in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in trainer.net.parameters()])
