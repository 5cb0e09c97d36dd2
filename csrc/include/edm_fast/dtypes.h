// Element types of tensors, and their conversion to and from the type a kernel computes in.
#pragma once

#include <cstdint>

#include "edm_fast/normal.h"

namespace edm_fast {

// The codes are part of the binding: edm_fast/ops/tensors.py holds the same list.
enum DType : int32_t { kFloat64 = 0, kFloat32 = 1, kFloat16 = 2, kBFloat16 = 3 };

struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

EDM_FAST_HOST_DEVICE float to_float(BFloat16 value) {
    return float_from_bits(uint32_t(value.bits) << 16);
}

EDM_FAST_HOST_DEVICE BFloat16 to_bfloat16(float value) {
    const uint32_t bits = bits_from_float(value);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
    return {uint16_t(is_nan ? (bits >> 16) | 0x0040u : rounded)};
}

EDM_FAST_HOST_DEVICE float to_float(Half value) {
    const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
    const uint32_t exponent = value.bits & 0x7C00u;
    const uint32_t magnitude = uint32_t(value.bits & 0x7FFFu) << 13;
    uint32_t bits;
    if (exponent == 0x7C00u) {
        bits = magnitude + (uint32_t(255 - 31) << 23);
    } else if (exponent == 0) {
        // A subnormal: place it below 2^-14 and subtract the implicit one, which is exact.
        bits = bits_from_float(float_from_bits(magnitude + (uint32_t(127 - 14) << 23)) - 0x1p-14f);
    } else {
        bits = magnitude + (uint32_t(127 - 15) << 23);
    }
    return float_from_bits(sign | bits);
}

EDM_FAST_HOST_DEVICE Half to_half(float value) {
    const uint32_t bits = bits_from_float(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    uint32_t half;
    if (magnitude > 0x7F800000u) {
        half = 0x7E00u | ((magnitude >> 13) & 0x3FFu);
    } else if (magnitude >= 0x47800000u) {
        half = 0x7C00u;
    } else if (magnitude < 0x38800000u) {
        // Below 2^-14 adding 1/2 leaves the subnormal's bits, rounded to even, at the end of the mantissa.
        half = bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3F000000u;
    } else {
        half = (magnitude - (uint32_t(127 - 15) << 23) + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
    }
    return {uint16_t(sign | half)};
}

EDM_FAST_HOST_DEVICE float to_float(float value) {
    return value;
}
EDM_FAST_HOST_DEVICE double to_float(double value) {
    return value;
}

// Conversion from the compute type (float or double) to an element type, rounded to nearest even. A double goes to
// 16 bits by way of float, as PyTorch's casts do.
template <class T>
struct Store;
template <>
struct Store<double> {
    template <class Compute>
    EDM_FAST_HOST_DEVICE static double from(Compute value) {
        return double(value);
    }
};
template <>
struct Store<float> {
    template <class Compute>
    EDM_FAST_HOST_DEVICE static float from(Compute value) {
        return float(value);
    }
};
template <>
struct Store<Half> {
    template <class Compute>
    EDM_FAST_HOST_DEVICE static Half from(Compute value) {
        return to_half(float(value));
    }
};
template <>
struct Store<BFloat16> {
    template <class Compute>
    EDM_FAST_HOST_DEVICE static BFloat16 from(Compute value) {
        return to_bfloat16(float(value));
    }
};

}  // namespace edm_fast
