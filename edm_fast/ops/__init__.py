"""Fused operations: validation, allocation and torch registration around the compiled kernels, a file per op."""

from edm_fast.ops.attention import attention
from edm_fast.ops.randn import randn
from edm_fast.ops.solver_step import solver_step

__all__ = ["attention", "randn", "solver_step"]
