#include "edm_fast/conv2d.h"

#include "conv2d_team.h"
#include "scratch.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

std::size_t conv2d_scratch(const Conv2dArgs& args, int threads) {
    if (args.algorithm == kTiles) return tiles_scratch(args, threads);
    return args.algorithm == kDirect ? direct_scratch(args, threads) : winograd_scratch(args, threads);
}

void conv2d(const Conv2dArgs& args, void* memory, const Team& team) {
    if (args.algorithm == kTiles) return tiles_conv2d(args, memory, team);
    if (args.algorithm == kDirect) return direct_conv2d(args, memory, team);
    winograd_conv2d(args, memory, team);
}

void conv2d(const Conv2dArgs& args, int threads) {
    if (args.samples == 0) return;
    void* memory = scratch(conv2d_scratch(args, threads));
    run_team(threads, [&](const Team& team) { conv2d(args, memory, team); });
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
