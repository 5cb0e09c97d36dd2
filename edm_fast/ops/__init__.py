"""Fused operations: validation, allocation and torch registration around the compiled kernels, a file per op."""

from edm_fast.ops.attention import attention
from edm_fast.ops.augment import augment
from edm_fast.ops.group_norm_silu import group_norm_silu
from edm_fast.ops.randn import randn
from edm_fast.ops.resample import resample
from edm_fast.ops.residual import residual
from edm_fast.ops.solver_step import solver_step

__all__ = ["attention", "augment", "group_norm_silu", "randn", "resample", "residual", "solver_step"]
