// CUDA's arithmetic intrinsics on the host. The _rn ones are single IEEE operations (the build's -ffp-contract=off
// keeps them apart). The fast ones are exact here and only approximate on a GPU: what depends on their bits is not
// testable. All are noexcept, as some of these names are also glibc's own, declared so in its math.h.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

// Bits.
inline unsigned __float_as_uint(float value) noexcept {
    return std::bit_cast<unsigned>(value);
}
inline int __float_as_int(float value) noexcept {
    return std::bit_cast<int>(value);
}
inline float __uint_as_float(unsigned value) noexcept {
    return std::bit_cast<float>(value);
}
inline float __int_as_float(int value) noexcept {
    return std::bit_cast<float>(value);
}
inline long long __double_as_longlong(double value) noexcept {
    return std::bit_cast<long long>(value);
}
inline double __longlong_as_double(long long value) noexcept {
    return std::bit_cast<double>(value);
}
inline int __popc(unsigned value) noexcept {
    return std::popcount(value);
}
inline int __popcll(unsigned long long value) noexcept {
    return std::popcount(value);
}
inline int __clz(int value) noexcept {
    return std::countl_zero(static_cast<unsigned>(value));
}
inline int __ffs(int value) noexcept {
    return value == 0 ? 0 : std::countr_zero(static_cast<unsigned>(value)) + 1;
}

// Integers.
inline unsigned __umulhi(unsigned a, unsigned b) noexcept {
    return static_cast<unsigned>((static_cast<std::uint64_t>(a) * b) >> 32);
}
inline int __mulhi(int a, int b) noexcept {
    return static_cast<int>((static_cast<std::int64_t>(a) * b) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) noexcept {
    __extension__ using Product = unsigned __int128;
    return static_cast<unsigned long long>((static_cast<Product>(a) * b) >> 64);
}

// Single roundings to nearest.
inline float __fadd_rn(float a, float b) noexcept {
    return a + b;
}
inline float __fsub_rn(float a, float b) noexcept {
    return a - b;
}
inline float __fmul_rn(float a, float b) noexcept {
    return a * b;
}
inline float __fdiv_rn(float a, float b) noexcept {
    return a / b;
}
inline float __fsqrt_rn(float a) noexcept {
    return std::sqrt(a);
}
inline float __frcp_rn(float a) noexcept {
    return 1.0f / a;
}
inline float __fmaf_rn(float a, float b, float c) noexcept {
    return std::fma(a, b, c);
}
inline double __dadd_rn(double a, double b) noexcept {
    return a + b;
}
inline double __dsub_rn(double a, double b) noexcept {
    return a - b;
}
inline double __dmul_rn(double a, double b) noexcept {
    return a * b;
}
inline double __ddiv_rn(double a, double b) noexcept {
    return a / b;
}
inline double __dsqrt_rn(double a) noexcept {
    return std::sqrt(a);
}
inline double __fma_rn(double a, double b, double c) noexcept {
    return std::fma(a, b, c);
}

namespace simt::detail {

// Conversion to int as GPUs do it: out of range gives the nearest end, NaN gives 0. In C++ both are undefined.
inline int saturated_int(double integral) noexcept {
    if (std::isnan(integral)) return 0;
    if (integral <= std::numeric_limits<int>::min()) return std::numeric_limits<int>::min();
    if (integral >= std::numeric_limits<int>::max()) return std::numeric_limits<int>::max();
    return static_cast<int>(integral);
}

}  // namespace simt::detail

// Conversions.
inline int __float2int_rn(float value) noexcept {
    return simt::detail::saturated_int(std::nearbyint(value));
}
inline int __float2int_rz(float value) noexcept {
    return simt::detail::saturated_int(std::trunc(value));
}
inline int __float2int_rd(float value) noexcept {
    return simt::detail::saturated_int(std::floor(value));
}
inline int __float2int_ru(float value) noexcept {
    return simt::detail::saturated_int(std::ceil(value));
}
inline int __double2int_rn(double value) noexcept {
    return simt::detail::saturated_int(std::nearbyint(value));
}
inline float __int2float_rn(int value) noexcept {
    return static_cast<float>(value);
}
inline float __uint2float_rn(unsigned value) noexcept {
    return static_cast<float>(value);
}
inline float __double2float_rn(double value) noexcept {
    return static_cast<float>(value);
}

// Functions.
inline float rsqrtf(float value) noexcept {
    return 1.0f / std::sqrt(value);
}
inline double rsqrt(double value) noexcept {
    return 1.0 / std::sqrt(value);
}
inline float __expf(float value) noexcept {
    return std::exp(value);
}
inline float __logf(float value) noexcept {
    return std::log(value);
}
inline float __log2f(float value) noexcept {
    return std::log2(value);
}
inline float __sinf(float value) noexcept {
    return std::sin(value);
}
inline float __cosf(float value) noexcept {
    return std::cos(value);
}
inline float __saturatef(float value) noexcept {
    return value > 0.0f ? std::fmin(value, 1.0f) : 0.0f;
}

// As documented by CUDA: for divisors between 2^126 and 2^128 the quotient is lost. SiLU at -88 meets this.
inline float __fdividef(float dividend, float divisor) noexcept {
    const float magnitude = std::fabs(divisor);
    if (magnitude > 0x1p126f && !std::isinf(magnitude)) {
        return std::isinf(dividend) ? std::numeric_limits<float>::quiet_NaN() : std::copysign(0.0f, dividend * divisor);
    }
    return dividend / divisor;
}

inline int min(int a, int b) noexcept {
    return a < b ? a : b;
}
inline int max(int a, int b) noexcept {
    return a > b ? a : b;
}
inline unsigned min(unsigned a, unsigned b) noexcept {
    return a < b ? a : b;
}
inline unsigned max(unsigned a, unsigned b) noexcept {
    return a > b ? a : b;
}
inline long min(long a, long b) noexcept {
    return a < b ? a : b;
}
inline long max(long a, long b) noexcept {
    return a > b ? a : b;
}
inline long long min(long long a, long long b) noexcept {
    return a < b ? a : b;
}
inline long long max(long long a, long long b) noexcept {
    return a > b ? a : b;
}
inline float min(float a, float b) noexcept {
    return std::fmin(a, b);
}
inline float max(float a, float b) noexcept {
    return std::fmax(a, b);
}
inline double min(double a, double b) noexcept {
    return std::fmin(a, b);
}
inline double max(double a, double b) noexcept {
    return std::fmax(a, b);
}

// Memory access with a hint for the caches.
template <class T>
T __ldg(const T* address) noexcept {
    return *address;
}
template <class T>
T __ldcg(const T* address) noexcept {
    return *address;
}
template <class T>
T __ldcs(const T* address) noexcept {
    return *address;
}
template <class T>
void __stcg(T* address, T value) noexcept {
    *address = value;
}
template <class T>
void __stcs(T* address, T value) noexcept {
    *address = value;
}
