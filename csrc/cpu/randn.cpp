#include "edm_fast/randn.h"

#include "image_io.h"
#include "noise_block.h"
#include "parallel.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

// A task is a run of kRun elements of one sample: 64 KiB of output at most, a multiple of the noise run.
void randn(const RandnArgs& args, int threads) {
    constexpr int64_t kRun = 32 * kNoiseRun;
    const int64_t elements = args.channels * args.pixels;
    const int64_t runs = (elements + kRun - 1) / kRun;
    parallel_for(args.samples * runs, threads, [&](int64_t task) {
        const int64_t sample = task / runs;
        const int64_t first = task % runs * kRun;
        const int64_t count = elements - first < kRun ? elements - first : kRun;
        alignas(64) float z[kRun];
        normals(uint64_t(args.seeds[sample]), args.draw, args.domain, first, count, z);
        store(args.out, sample, args.pixels, first, count, z);
    });
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
