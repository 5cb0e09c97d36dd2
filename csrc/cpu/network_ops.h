// The ops of a network as functions of a team, so that an executor can run many of them in one parallel region. Every
// thread of the team calls the same function with the same arguments and the same `memory`: as many bytes as the op's
// _scratch function says, aligned to 64, contents undefined, its own until the team has passed a barrier. No barrier
// stands at the end: results are there once the team has passed one.
#pragma once

#include <cstddef>

#include "edm_fast/group_norm_silu.h"
#include "edm_fast/resample.h"
#include "edm_fast/residual.h"
#include "team.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

std::size_t group_norm_silu_scratch(const GroupNormSiluArgs& args);
void group_norm_silu(const GroupNormSiluArgs& args, void* memory, const Team& team);

std::size_t resample_scratch(const ResampleArgs& args);
void resample(const ResampleArgs& args, void* memory, const Team& team);

std::size_t residual_scratch(const ResidualArgs& args);
void residual(const ResidualArgs& args, void* memory, const Team& team);

}  // namespace edm_fast::cpu::EDM_FAST_ISA
