"""The augmentation pipe with its images made by one kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from edm_fast.ops.augment import augment
from edm_fast.reference import augment as reference


class AugmentPipe(reference.AugmentPipe):
    """EDM's augmentation pipe: `pipe(images)` returns augmented images and the labels that tell the network of them.

    Options, draws and labels are those of `edm_fast.reference.augment.AugmentPipe`: after the same torch.manual_seed
    both draw the same. What it drew is applied by `edm_fast.ops.augment`, whose results differ in rounding, and which
    gives images without a warp back to the bit.
    """

    def apply(self, images: Tensor, parameters: reference.AugmentParameters) -> Tensor:
        """The images after what `draw` drew; they carry no gradient."""
        with torch.no_grad():
            return augment(images, *parameters[:3])
