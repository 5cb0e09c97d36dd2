"""The samplers of NVlabs/edm by their names, and noise by one torch generator per seed as its tool makes it.

A network object of that code is called as it is. `edm_fast.accelerate(net)` makes a faster one of it.
"""

from edm_fast.samplers.edm import ablation_sampler, edm_sampler
from edm_fast.samplers.noise import StackedRandomGenerator

__all__ = ["StackedRandomGenerator", "ablation_sampler", "edm_sampler"]
