"""Fused operations: validation, allocation and torch registration around the compiled kernels, a file per op."""

from edm_fast.ops.attention import attention
from edm_fast.ops.augment import augment
from edm_fast.ops.conv2d_split import conv2d_split
from edm_fast.ops.denoising_loss import denoising_loss
from edm_fast.ops.dropout import dropout
from edm_fast.ops.group_norm_silu import group_norm_silu
from edm_fast.ops.noise_augment import noise_augment
from edm_fast.ops.randn import randn
from edm_fast.ops.resample import resample
from edm_fast.ops.residual import residual
from edm_fast.ops.solver_step import solver_step

__all__ = [
    "attention",
    "augment",
    "conv2d_split",
    "denoising_loss",
    "dropout",
    "group_norm_silu",
    "noise_augment",
    "randn",
    "resample",
    "residual",
    "solver_step",
]
