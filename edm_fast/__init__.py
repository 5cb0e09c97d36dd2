"""edm_fast: sample and train EDM diffusion models (Karras et al. 2022, arXiv 2206.00364), fast and exactly."""

from edm_fast.checkpoints import load
from edm_fast.errors import CheckpointError
from edm_fast.networks.accelerate import accelerate
from edm_fast.ops.randn import randn
from edm_fast.plan import prepare
from edm_fast.samplers.sample import sample

__version__ = "0.1.0"
__all__ = ["CheckpointError", "__version__", "accelerate", "load", "prepare", "randn", "sample"]
