"""The networks: EDM's preconditioned denoisers and the U-Nets inside them, under EDM's names, by fused ops.

Constructor arguments, state_dict keys, initial weights and results are those of `edm_fast.reference`, whose modules
these are, with another forward.
"""

from __future__ import annotations

from edm_fast.networks.accelerate import accelerate
from edm_fast.networks.dhariwal_unet import DhariwalUNet
from edm_fast.networks.preconditioning import EDMPrecond, Precond, VEPrecond, VPPrecond, iDDPMPrecond
from edm_fast.networks.song_unet import SongUNet
from edm_fast.reference.preconditioning import Coefficients

__all__ = [
    "Coefficients",
    "DhariwalUNet",
    "EDMPrecond",
    "Precond",
    "SongUNet",
    "VEPrecond",
    "VPPrecond",
    "accelerate",
    "iDDPMPrecond",
]
