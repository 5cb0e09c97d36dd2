// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): a keyed bijection of 128-bit
// counters. It is the only source of randomness in the library, and this file is the only place that says how seeds,
// draws and elements become keys and counters.
//
//   key     = the sample's 64-bit seed (low word, high word)
//   counter = (block low, block high, draw index, domain)
//
// Element i of a sample takes word i % 4 of block i / 4, so a value depends on (seed, draw, element) alone: never on
// the batch, the grid or the device. Only kDomainDropout counts otherwise, over the batch of a layer: see dropout.h.
#pragma once

#include <cstdint>

#include "edm_fast/host_device.h"

namespace edm_fast {

// What a stream of words is for; streams of different domains never overlap.
enum NoiseDomain : uint32_t {
    kDomainSampler = 0,     // draw 0 = the latents, draw i + 1 = the churn of step i
    kDomainLabels = 1,      // draw 0, word 0 of block 0 picks a random class
    kDomainUser = 2,        // for callers of the library
    kDomainTraining = 3,    // the noise of training, draw = how often the sample's seed was used before
    kDomainNoiseLevel = 4,  // block 0 gives the noise level that goes with a draw of kDomainTraining
    kDomainDropout = 5,     // of a network in training; the seed is that of a layer's call
};

// Four named words and not an array: compilers then keep them in vector lanes.
struct PhiloxWords {
    uint32_t x, y, z, w;
};

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;

struct WideProduct {
    uint32_t low, high;
};

EDM_FAST_HOST_DEVICE WideProduct wide_product(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
    // In C++ nvcc adds a zero to the high word of each: 20 instructions of Philox's 95.
    WideProduct product;
    asm("{\n\t.reg .b64 product;\n\tmul.wide.u32 product, %2, %3;\n\tmov.b64 {%0, %1}, product;\n\t}"
        : "=r"(product.low), "=r"(product.high)
        : "r"(a), "r"(b));
    return product;
#else
    const uint64_t product = uint64_t(a) * b;
    return {uint32_t(product), uint32_t(product >> 32)};
#endif
}

EDM_FAST_HOST_DEVICE PhiloxWords philox4x32_10(uint32_t key0, uint32_t key1, PhiloxWords counter) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (int round = 0; round < kPhiloxRounds; ++round) {
        const WideProduct product0 = wide_product(kPhiloxMultiplier0, counter.x);
        const WideProduct product1 = wide_product(kPhiloxMultiplier1, counter.z);
        counter = {product1.high ^ counter.y ^ key0, product1.low, product0.high ^ counter.w ^ key1, product0.low};
        key0 += kPhiloxWeyl0;
        key1 += kPhiloxWeyl1;
    }
    return counter;
}

EDM_FAST_HOST_DEVICE PhiloxWords noise_words(uint64_t seed, uint64_t block, uint32_t draw, uint32_t domain) {
    return philox4x32_10(uint32_t(seed), uint32_t(seed >> 32), {uint32_t(block), uint32_t(block >> 32), draw, domain});
}

}  // namespace edm_fast
