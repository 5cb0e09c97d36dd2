// Vectors of float32 as wide as the instruction set has them, with loads and stores for every storage type. Arithmetic
// is written with the operators of the compiler's vector extension.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "edm_fast/dtypes.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

#define EDM_FAST_INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t VecInt __attribute__((vector_size(4 * kLanes)));
typedef uint32_t VecBits __attribute__((vector_size(4 * kLanes)));
typedef uint16_t VecHalves __attribute__((vector_size(2 * kLanes)));

EDM_FAST_INLINE Vec splat(float value) {
#if defined(__AVX512F__)
    return (Vec)_mm512_set1_ps(value);
#elif defined(__AVX2__)
    return (Vec)_mm256_set1_ps(value);
#else
    return Vec{value, value, value, value};
#endif
}

// Lane i is that of index kFrom[i] among the lanes of a, and then those of b.
template <int... kFrom>
EDM_FAST_INLINE Vec shuffle(Vec a, Vec b) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, kFrom...);
#else
    return __builtin_shuffle(a, b, VecInt{kFrom...});
#endif
}

// a · b + c, in one rounding where the instruction set has it.
EDM_FAST_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
    return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

#if defined(__AVX512F__)
// These two are for processors with AVX512_BF16 only. Written as assembly, since the rest must run on others too.
//
// c + a[2i] · b[2i] + a[2i + 1] · b[2i + 1], the vectors taken as pairs of bfloat16; subnormal numbers count as 0.
EDM_FAST_INLINE Vec multiply_pairs(Vec a, Vec b, Vec c) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
}

// Rounded to the nearest; subnormal numbers become 0.
EDM_FAST_INLINE void store_rounded(BFloat16* to, Vec value) {
    __m256i halves;
    asm("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"(value));
    _mm256_storeu_si256((__m256i*)to, halves);
}
#endif

EDM_FAST_INLINE Vec load(const float* from) {
    Vec value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// GCC takes the vectors of the generic form apart, which costs as much as a SiLU; hence the intrinsics here and in the
// store.
EDM_FAST_INLINE Vec load(const BFloat16* from) {
#if defined(__AVX512F__)
    return (Vec)((VecBits)_mm512_maskz_cvtepu16_epi32(0xFFFF, _mm256_loadu_si256((const __m256i*)from)) << 16);
#elif defined(__AVX2__)
    return (Vec)((VecBits)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)) << 16);
#else
    VecHalves halves;
    std::memcpy(&halves, from, sizeof halves);
    return (Vec)(__builtin_convertvector(halves, VecBits) << 16);
#endif
}

EDM_FAST_INLINE Vec load(const Half* from) {
#if defined(__AVX512F__)
    // The unmasked intrinsics warn of an uninitialised operand under GCC 12.
    return (Vec)_mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
    return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
    Vec value;
    for (int i = 0; i < kLanes; ++i) value[i] = to_float(from[i]);
    return value;
#endif
}

EDM_FAST_INLINE void store(float* to, Vec value) {
    std::memcpy(to, &value, sizeof value);
}

EDM_FAST_INLINE void store(BFloat16* to, Vec value) {
    const VecBits bits = (VecBits)value;
    const VecBits rounded = bits + 0x7FFFu + ((bits >> 16) & 1u);
    const VecBits quiet = bits | 0x00400000u;
#if defined(__AVX512F__)
    const __mmask16 is_nan = _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_UNORD_Q);
    const VecBits result = (VecBits)_mm512_mask_mov_epi32((__m512i)rounded, is_nan, (__m512i)quiet) >> 16;
    _mm256_storeu_si256((__m256i*)to, _mm512_maskz_cvtepi32_epi16(0xFFFF, (__m512i)result));
#else
    const VecBits is_nan = (VecBits)(value != value);
    const VecBits result = ((is_nan & quiet) | (~is_nan & rounded)) >> 16;
#if defined(__AVX2__)
    const __m256i packed = _mm256_packus_epi32((__m256i)result, (__m256i)result);
    _mm_storeu_si128((__m128i*)to, _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#else
    const VecHalves halves = __builtin_convertvector(result, VecHalves);
    std::memcpy(to, &halves, sizeof halves);
#endif
#endif
}

EDM_FAST_INLINE void store(Half* to, Vec value) {
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i*)to, _mm512_maskz_cvtps_ph(0xFFFF, (__m512)value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
    _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < kLanes; ++i) to[i] = to_half(value[i]);
#endif
}

// The first `count` lanes; the others read as 0.
template <class T>
EDM_FAST_INLINE Vec load_some(const T* from, int count) {
    if (count >= kLanes) return load(from);
    T buffer[kLanes] = {};
    std::memcpy(buffer, from, sizeof(T) * size_t(count));
    return load(buffer);
}

template <class T>
EDM_FAST_INLINE void store_some(T* to, Vec value, int count) {
    if (count >= kLanes) return store(to, value);
    T buffer[kLanes];
    store(buffer, value);
    std::memcpy(to, buffer, sizeof(T) * size_t(count));
}

EDM_FAST_INLINE Vec select(VecInt condition, Vec yes, Vec no) {
    return condition ? yes : no;
}

// e^x / 2^n with n = x / ln 2 rounded, for |n| < 2^22; the low bits of *shifted_bits are n.
EDM_FAST_INLINE Vec exp_fraction(Vec x, VecInt* shifted_bits) {
    const Vec high = splat(0x1.62e300p-1f),
              low = splat(0x1.2fefa2p-17f);  // ln 2 = high + low, high with trailing zeros
    const Vec magic = splat(0x1.8p23f);
    const Vec shifted = fma(x, splat(0x1.715476p0f), magic);
    const Vec n = shifted - magic;
    const Vec r = fma(n, -low, fma(n, -high, x));
    Vec p = splat(0x1.6850e4p-10f);
    p = fma(p, r, splat(0x1.123bccp-7f));
    p = fma(p, r, splat(0x1.555b98p-5f));
    p = fma(p, r, splat(0x1.55548ep-3f));
    p = fma(p, r, splat(0x1.fffff8p-2f));
    p = fma(p, r, splat(1.0f));
    *shifted_bits = (VecInt)shifted;
    return fma(p, r, splat(1.0f));
}

// e^x within 2 ulp; 0 below -103, infinity above 88.73; NaN stays NaN.
EDM_FAST_INLINE Vec exp(Vec x) {
    const Vec clipped = select(x > 89.0f, splat(89.0f), select(x < -104.0f, splat(-104.0f), x));
    VecInt shifted;
    const Vec p = exp_fraction(clipped, &shifted);
    // 2^n in two factors, so that results below 2^-126 and the overflow to infinity come out right.
    const VecInt whole = shifted - 0x4B400000;
    const VecInt half = whole >> 1;
    return p * (Vec)((half + 127) << 23) * (Vec)((whole - half + 127) << 23);
}

// e^x for x < 88, in fewer steps: 0 below -87.7, where the result would pass 2^-126.
EDM_FAST_INLINE Vec exp_of_difference(Vec x) {
    VecInt shifted;
    // At the bound n is -127, whose power of two comes out as 0.
    const Vec p = exp_fraction(select(x < -88.0f, splat(-88.0f), x), &shifted);
    return p * (Vec)((shifted << 23) + 0x3F800000);
}

// x / (1 + e^-x); -0 below -88.73, NaN for -infinity and NaN, as PyTorch has it.
EDM_FAST_INLINE Vec silu(Vec x) {
    return x / (1.0f + exp(-x));
}

// The sum of all lanes, in a fixed order.
EDM_FAST_INLINE float sum_lanes(Vec value) {
    float lanes[kLanes];
    store(lanes, value);
    for (int width = kLanes / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    }
    return lanes[0];
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
