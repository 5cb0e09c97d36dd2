// Standard normal numbers from Philox words by Box-Muller, with the same bits on every device:
//
//   u = (w0 + 1/2) / 2^32,  θ = 2π (w1 + 1/2) / 2^32,  z0 = √(-2 ln u) cos θ,  z1 = √(-2 ln u) sin θ
//
// Every operation here is one that IEEE 754 defines (fma, multiply, square root, conversion), in a written order, and
// is compiled with contraction off, so CPU, CUDA and the PyTorch reference agree to the bit. The logarithm keeps its
// relative accuracy on both ends of (0, 1): all 32 bits of w0 count, and |z| reaches 6.76. Polynomials: minimax fits
// with float32 coefficients, errors 8e-10 (log), 4e-9 (sin) and 2e-10 (cos), relative.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "edm_fast/philox.h"

namespace edm_fast {

EDM_FAST_HOST_DEVICE float float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

EDM_FAST_HOST_DEVICE uint32_t bits_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// ln((word + 1/2) / 2^32), in [-22.9, 0).
EDM_FAST_HOST_DEVICE float log_uniform(uint32_t word) {
    constexpr uint32_t kSqrtHalfWord = 0xB504F334u;   // ⌈2^32 √½⌉
    constexpr uint32_t kSqrtHalfFloat = 0x3F3504F3u;  // bits of √½
    // Below √½: u = 2^e (1 + f) with 1 + f in [√½, √2). Above: 1 - u from the inverted word, exact where u is not.
    const uint32_t bits = bits_from_float(fmaf(float(word), 0x1p-32f, 0x1p-33f));
    const int32_t shifted = int32_t(bits - kSqrtHalfFloat) >> 23;
    const float mantissa = float_from_bits(bits - (uint32_t(shifted) << 23));
    const bool high = word >= kSqrtHalfWord;
    const float f = high ? -fmaf(float(~word), 0x1p-32f, 0x1p-33f) : mantissa - 1.0f;
    const float exponent = high ? 0.0f : float(shifted);
    float p = 0x1.147294p-4f;
    p = fmaf(p, f, -0x1.de012ap-4f);
    p = fmaf(p, f, 0x1.e6bfe8p-4f);
    p = fmaf(p, f, -0x1.fc28d8p-4f);
    p = fmaf(p, f, 0x1.233ba4p-3f);
    p = fmaf(p, f, -0x1.555c44p-3f);
    p = fmaf(p, f, 0x1.99a476p-3f);
    p = fmaf(p, f, -0x1.000006p-2f);
    p = fmaf(p, f, 0x1.555548p-2f);
    const float log_1p = fmaf(f * f, fmaf(p, f, -0.5f), f);
    return fmaf(exponent, 0x1.62e430p-1f, log_1p);
}

struct SineCosine {
    float sine, cosine;
};

// Sine and cosine of 2π (word + 1/2) / 2^32. The reduction to [-π/4, π/4] is exact, in integers.
EDM_FAST_HOST_DEVICE SineCosine sine_cosine_turn(uint32_t word) {
    const uint32_t quadrant = (word + 0x20000000u) >> 30;
    const int32_t remainder = int32_t(word - (quadrant << 30));
    const float x = fmaf(float(remainder), 0x1.921fb6p-30f, 0x1.921fb6p-31f);
    const float z = x * x;
    float s = -0x1.995404p-13f;
    s = fmaf(s, z, 0x1.110778p-7f);
    s = fmaf(s, z, -0x1.555546p-3f);
    const float sine = fmaf(x * z, s, x);
    float c = 0x1.99e908p-16f;
    c = fmaf(c, z, -0x1.6c0c2ap-10f);
    c = fmaf(c, z, 0x1.55554ap-5f);
    const float cosine = fmaf(z * z, c, fmaf(z, -0.5f, 1.0f));
    const bool odd = (quadrant & 1u) != 0;
    const float a = odd ? cosine : sine;
    const float b = odd ? sine : cosine;
    return {(quadrant & 2u) != 0 ? -a : a, ((quadrant + 1u) & 2u) != 0 ? -b : b};
}

struct Normals {
    float x, y, z, w;
};

// x and y from words x and y, z and w from words z and w.
EDM_FAST_HOST_DEVICE Normals normals_from_words(PhiloxWords words) {
    const float radius0 = sqrtf(-2.0f * log_uniform(words.x));
    const float radius1 = sqrtf(-2.0f * log_uniform(words.z));
    const SineCosine turn0 = sine_cosine_turn(words.y);
    const SineCosine turn1 = sine_cosine_turn(words.w);
    return {radius0 * turn0.cosine, radius0 * turn0.sine, radius1 * turn1.cosine, radius1 * turn1.sine};
}

// normal(seed, draw, element) for the four elements of a block.
EDM_FAST_HOST_DEVICE Normals normal_block(uint64_t seed, uint64_t block, uint32_t draw, uint32_t domain) {
    return normals_from_words(noise_words(seed, block, draw, domain));
}

}  // namespace edm_fast
