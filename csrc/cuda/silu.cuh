// SiLU and its derivative, as exact as the storage T can tell: in 16 bits the fast exponential and division vanish in
// the rounding, in float32 both are right to an ulp or two. No IEEE division: it is a call, around which registers
// spill.
#pragma once

#include <cmath>

#include "simt.h"

namespace edm_fast::cuda {

// 1 / (1 + e^-v). Below v = -87 the fast division gives 0, with which SiLU is 0 as it should be, and NaN at -infinity.
template <class T>
__device__ __forceinline__ float sigmoid(float v) {
    if constexpr (sizeof(T) == sizeof(float)) {
        const float divisor = 1.0f + expf(-v);
        const float estimate = __fdividef(1.0f, divisor);
        return divisor < 0x1p126f ? fmaf(estimate, fmaf(-divisor, estimate, 1.0f), estimate) : estimate;
    } else {
        return __fdividef(1.0f, 1.0f + __expf(-v));
    }
}

template <class T>
__device__ __forceinline__ float silu(float v) {
    return v * sigmoid<T>(v);
}

template <class T>
__device__ __forceinline__ float silu_derivative(float v) {
    const float s = sigmoid<T>(v);
    return s * (1.0f + v * (1.0f - s));
}

}  // namespace edm_fast::cuda
