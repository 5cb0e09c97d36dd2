"""The networks: EDM's preconditioned denoisers and the U-Nets inside them, under EDM's names.

This is the public door. The plain PyTorch implementations stand behind it; fused implementations take their place
under the same names, with the same constructor arguments and state_dict keys.
"""

from __future__ import annotations

from edm_fast.reference.dhariwal_unet import DhariwalUNet
from edm_fast.reference.preconditioning import (
    Coefficients,
    EDMPrecond,
    Precond,
    VEPrecond,
    VPPrecond,
    iDDPMPrecond,
)
from edm_fast.reference.song_unet import SongUNet

__all__ = [
    "Coefficients",
    "DhariwalUNet",
    "EDMPrecond",
    "Precond",
    "SongUNet",
    "VEPrecond",
    "VPPrecond",
    "iDDPMPrecond",
]
