"""k-diffusion's samplers and schedules by their names and signatures, executed as solver tables.

    from edm_fast.compat import k_diffusion as sampling  # was: from k_diffusion import sampling

Beyond its arguments the samplers that draw noise take `randn_like` and `seeds` by keyword. `samplers` says what all of
them have in common; docs/coming-from-k-diffusion.md what differs.
"""

from edm_fast.compat.k_diffusion.dpm_solver_samplers import sample_dpm_adaptive, sample_dpm_fast
from edm_fast.compat.k_diffusion.noise import BrownianTreeNoiseSampler
from edm_fast.compat.k_diffusion.samplers import (
    sample_dpm_2,
    sample_dpm_2_ancestral,
    sample_dpmpp_2m,
    sample_dpmpp_2s_ancestral,
    sample_euler,
    sample_euler_ancestral,
    sample_heun,
    sample_lms,
)
from edm_fast.compat.k_diffusion.schedules import (
    get_sigmas_exponential,
    get_sigmas_karras,
    get_sigmas_polyexponential,
    get_sigmas_vp,
)
from edm_fast.compat.k_diffusion.sde_samplers import sample_dpmpp_2m_sde, sample_dpmpp_3m_sde, sample_dpmpp_sde

__all__ = [
    "BrownianTreeNoiseSampler",
    "get_sigmas_exponential",
    "get_sigmas_karras",
    "get_sigmas_polyexponential",
    "get_sigmas_vp",
    "sample_dpm_2",
    "sample_dpm_2_ancestral",
    "sample_dpm_adaptive",
    "sample_dpm_fast",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_2s_ancestral",
    "sample_dpmpp_3m_sde",
    "sample_dpmpp_sde",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_heun",
    "sample_lms",
]
