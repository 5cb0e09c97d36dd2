// attention for a team of threads that is already running, such as a whole network's.
#pragma once

#include <cstddef>

#include "edm_fast/attention.h"
#include "team.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

// Bytes of working memory that attention() needs for a team of `threads`; they do not grow with the batch.
std::size_t attention_scratch(const AttentionArgs& args, int threads);

// Every thread of the team calls it, with the same scratch, which is aligned to 64. The inputs are ready when it is
// called; the outputs are when every thread has returned.
void attention(const AttentionArgs& args, void* scratch, const Team& team);

}  // namespace edm_fast::cpu::EDM_FAST_ISA
