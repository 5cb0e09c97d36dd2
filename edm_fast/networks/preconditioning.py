"""EDM's four preconditionings around the fused U-Nets."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from edm_fast.networks.dhariwal_unet import DhariwalUNet
from edm_fast.networks.song_unet import SongUNet
from edm_fast.reference import preconditioning as reference

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Precond(reference.Precond):
    """`edm_fast.reference.preconditioning.Precond` around a fused network.

    `compute_dtype` is the dtype that F runs in: None, as it is at first, is EDM's rule (float16 with `use_fp16` on
    CUDA, else float32); float32, float16 or bfloat16 holds on every device. `force_fp32` goes before both. Setting it
    to anything else raises ValueError.
    """

    model_types: Mapping[str, Callable[..., nn.Module]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
    _compute_dtype: torch.dtype | None = None

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """The dtype that F runs in; None for EDM's rule. Setting it to another raises ValueError."""
        return self._compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype | None) -> None:
        if dtype is not None and dtype not in _DTYPES:
            raise ValueError(f"compute_dtype: got {dtype}; it is None, float32, float16 or bfloat16")
        self._compute_dtype = dtype

    def network_dtype(self, device: torch.device, force_fp32: bool) -> torch.dtype:
        """Return the dtype that F runs in."""
        if force_fp32 or self._compute_dtype is None:
            return super().network_dtype(device, force_fp32)
        return self._compute_dtype


class VPPrecond(Precond, reference.VPPrecond):
    __doc__ = reference.VPPrecond.__doc__


class VEPrecond(Precond, reference.VEPrecond):
    __doc__ = reference.VEPrecond.__doc__


class iDDPMPrecond(Precond, reference.iDDPMPrecond):
    __doc__ = reference.iDDPMPrecond.__doc__


class EDMPrecond(Precond, reference.EDMPrecond):
    __doc__ = reference.EDMPrecond.__doc__
