"""Training: data, augmentation, weight averages and the loop."""

from edm_fast.training.augment import AugmentPipe

__all__ = ["AugmentPipe"]
