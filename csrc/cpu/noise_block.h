// Normal numbers for a run of elements, 64 at a time so that the compiler can keep 16 counters in vector registers.
#pragma once

#include <cstdint>

#include "edm_fast/image_view.h"
#include "edm_fast/normal.h"
#include "image_io.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

constexpr int64_t kNoiseBlocks = 16;
constexpr int64_t kNoiseRun = 4 * kNoiseBlocks;

// z[i] = normal(seed, draw, element first + i) for i in [0, count); first is a multiple of 4, z has room for count
// rounded up to a multiple of kNoiseRun.
static inline void normals(uint64_t seed, uint32_t draw, uint32_t domain, int64_t first, int64_t count, float* z) {
    for (int64_t start = 0; start < count; start += kNoiseRun) {
        float lanes[4][kNoiseBlocks];
        const uint64_t first_block = uint64_t(first + start) / 4;
#pragma GCC ivdep
        for (int64_t i = 0; i < kNoiseBlocks; ++i) {
            const Normals block = normal_block(seed, first_block + uint64_t(i), draw, domain);
            lanes[0][i] = block.x;
            lanes[1][i] = block.y;
            lanes[2][i] = block.z;
            lanes[3][i] = block.w;
        }
        for (int64_t i = 0; i < kNoiseBlocks; ++i) {
            for (int lane = 0; lane < 4; ++lane) z[start + 4 * i + lane] = lanes[lane][i];
        }
    }
}

// The noise of a training step: what the caller brought, or ours by the samples' seeds.
static inline void training_noise(const ImageView& given, const int64_t* seeds, uint32_t draw, int64_t sample,
                                  int64_t pixels, int64_t first, int64_t count, float* n) {
    if (given.data != nullptr) {
        load(given, sample, pixels, first, count, n);
    } else {
        normals(uint64_t(seeds[sample]), draw, kDomainTraining, first, count, n);
    }
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
