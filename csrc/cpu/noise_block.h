// Normal numbers for a run of elements. Philox is written out for vectors of counters, since compilers take whole
// 64-bit products for those of words; the rest they make into vectors themselves.
#pragma once

#include <cstdint>
#include <cstring>

#include "edm_fast/image_view.h"
#include "edm_fast/normal.h"
#include "image_io.h"
#include "independent.h"
#include "simd.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

constexpr int64_t kNoiseBlocks = 32;
constexpr int64_t kNoiseRun = 4 * kNoiseBlocks;

// x · multiplier, its upper and its lower words.
EDM_FAST_INLINE void multiply_words(VecBits x, uint32_t multiplier, VecBits* high, VecBits* low) {
#if defined(__AVX512F__)
    const __m512i factor = _mm512_set1_epi32(int(multiplier));
    // The unmasked intrinsics warn of an uninitialised operand under GCC 12.
    const __m512i even = _mm512_maskz_mul_epu32(0xFF, (__m512i)x, factor);
    const __m512i odd = _mm512_maskz_mul_epu32(0xFF, _mm512_maskz_srli_epi64(0xFF, (__m512i)x, 32), factor);
    *high = (VecBits)_mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_CDAB);
    *low = (VecBits)_mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CDAB);
#elif defined(__AVX2__)
    const __m256i factor = _mm256_set1_epi32(int(multiplier));
    const __m256i even = _mm256_mul_epu32((__m256i)x, factor);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)x, 32), factor);
    *high = (VecBits)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
    *low = (VecBits)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
#else
    for (int i = 0; i < kLanes; ++i) {
        const uint64_t product = uint64_t(x[i]) * multiplier;
        (*high)[i] = uint32_t(product >> 32);
        (*low)[i] = uint32_t(product);
    }
#endif
}

// philox4x32_10 of kGroup vectors of counters, in the shape of its words; one vector alone would wait for itself.
template <int kGroup>
EDM_FAST_INLINE void philox_rounds(uint32_t key0, uint32_t key1, VecBits (&x)[kGroup], VecBits (&y)[kGroup],
                                   VecBits (&z)[kGroup], VecBits (&w)[kGroup]) {
#pragma GCC unroll 10
    for (int round = 0; round < kPhiloxRounds; ++round) {
#pragma GCC unroll 4
        for (int i = 0; i < kGroup; ++i) {
            VecBits high0, low0, high1, low1;
            multiply_words(x[i], kPhiloxMultiplier0, &high0, &low0);
            multiply_words(z[i], kPhiloxMultiplier1, &high1, &low1);
            x[i] = high1 ^ y[i] ^ key0;
            y[i] = low1;
            z[i] = high0 ^ w[i] ^ key1;
            w[i] = low0;
        }
        key0 += kPhiloxWeyl0;
        key1 += kPhiloxWeyl1;
    }
}

// words[k][i] = word k of noise_words(seed, first_block + i, draw, domain) for kNoiseBlocks blocks.
EDM_FAST_INLINE void noise_block_words(uint64_t seed, uint64_t first_block, uint32_t draw, uint32_t domain,
                                       uint32_t (&words)[4][kNoiseBlocks]) {
    constexpr int kGroup = 2;
    static_assert(kNoiseBlocks % (kGroup * kLanes) == 0);
    VecBits lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = uint32_t(i);
    for (int64_t start = 0; start < kNoiseBlocks; start += kGroup * kLanes) {
        VecBits x[kGroup], y[kGroup], z[kGroup], w[kGroup];
        for (int i = 0; i < kGroup; ++i) {
            const uint64_t block = first_block + uint64_t(start + i * kLanes);
            x[i] = lane + uint32_t(block);
            y[i] = VecBits{} + uint32_t(block >> 32) - (VecBits)(x[i] < uint32_t(block));  // true is -1
            z[i] = VecBits{} + draw;
            w[i] = VecBits{} + domain;
        }
        philox_rounds(uint32_t(seed), uint32_t(seed >> 32), x, y, z, w);
        for (int i = 0; i < kGroup; ++i) {
            std::memcpy(words[0] + start + i * kLanes, &x[i], sizeof x[i]);
            std::memcpy(words[1] + start + i * kLanes, &y[i], sizeof y[i]);
            std::memcpy(words[2] + start + i * kLanes, &z[i], sizeof z[i]);
            std::memcpy(words[3] + start + i * kLanes, &w[i], sizeof w[i]);
        }
    }
}

// z[i] = normal(seed, draw, element first + i) for i in [0, count); first is a multiple of 4, z has room for count
// rounded up to a multiple of kNoiseRun.
static inline void normals(uint64_t seed, uint32_t draw, uint32_t domain, int64_t first, int64_t count, float* z) {
    for (int64_t start = 0; start < count; start += kNoiseRun) {
        alignas(64) uint32_t words[4][kNoiseBlocks];
        alignas(64) float lanes[4][kNoiseBlocks];
        noise_block_words(seed, uint64_t(first + start) / 4, draw, domain, words);
        EDM_FAST_INDEPENDENT
        for (int64_t i = 0; i < kNoiseBlocks; ++i) {
            const Normals block = normals_from_words({words[0][i], words[1][i], words[2][i], words[3][i]});
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
