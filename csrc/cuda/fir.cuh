// The gathering side of 2x resampling (resample.h), for a pack of channels: which input pixels an output pixel is made
// of, and with which weights.
#pragma once

#include <cstdint>

#include "edm_fast/resample.h"
#include "simt.h"
#include "tile.cuh"

namespace edm_fast::cuda {

struct Fir {
    bool up;
    int taps, padding;
    int height, width;  // of the images that are read
    int out_height, out_width;
    float tap[kMaxTaps];  // with the factor of 2 of `up`
};

inline int64_t resampled_extent(const Resampling& resampling, int64_t extent) {
    const int64_t k = resampling.taps, p = resampling.padding;
    if (resampling.direction > 0) return 2 * extent - 2 + k - 2 * p;
    return resampling.direction < 0 ? (extent + 2 * p - k) / 2 + 1 : extent;
}

// From images of height · width to the resampled ones.
inline Fir make_fir(const Resampling& resampling, int64_t height, int64_t width) {
    Fir fir{};
    fir.up = resampling.direction > 0;
    fir.taps = resampling.taps;
    fir.padding = resampling.padding;
    fir.height = int(height);
    fir.width = int(width);
    fir.out_height = int(resampled_extent(resampling, height));
    fir.out_width = int(resampled_extent(resampling, width));
    for (int i = 0; i < kMaxTaps; ++i) fir.tap[i] = fir.up ? 2 * resampling.tap[i] : resampling.tap[i];
    return fir;
}

// Its transpose: from gradients of the resampled images to those of the images. The weights stay what they are.
inline Fir transposed(const Fir& fir) {
    Fir result = fir;
    result.up = !fir.up;
    result.height = fir.out_height;
    result.width = fir.out_width;
    result.out_height = fir.height;
    result.out_width = fir.width;
    return result;
}

// for_each_tap for a number of taps that the compiler knows.
template <bool kUp, int kTaps, class Visit>
__device__ __forceinline__ void for_each_of(const Fir& fir, int out_y, int out_x, const Visit& visit) {
    // Upwards every second tap meets a pixel, and the later tap the earlier pixel.
    constexpr int kStep = kUp ? 2 : 1, kCount = kTaps / kStep;
    const int y_end = out_y + fir.padding, x_end = out_x + fir.padding;
    const int y_first = kUp ? y_end >> 1 : 2 * out_y - fir.padding;
    const int x_first = kUp ? x_end >> 1 : 2 * out_x - fir.padding;
    float weights[kCount];
#pragma unroll
    for (int b = 0; b < kCount; ++b) {
        weights[b] = kUp && (x_end & 1) != 0 ? fir.tap[kStep * b + 1] : fir.tap[kStep * b];
    }
#pragma unroll 1
    for (int a = 0; a < kCount; ++a) {
        const int y = kUp ? y_first - a : y_first + a;
        if (unsigned(y) >= unsigned(fir.height)) continue;
        const float weight = fir.tap[kUp ? 2 * a + (y_end & 1) : a];
        const int64_t row = int64_t(y) * fir.width;
#pragma unroll
        for (int b = 0; b < kCount; ++b) {
            const int x = kUp ? x_first - b : x_first + b;
            if (unsigned(x) < unsigned(fir.width)) visit(row + x, weight * weights[b]);
        }
    }
}

// for_each_tap for any number of taps.
template <class Visit>
__device__ __forceinline__ void for_each_of_any(const Fir& fir, int out_y, int out_x, const Visit& visit) {
    const int step = fir.up ? 2 : 1;
    const int y_end = out_y + fir.padding, x_end = out_x + fir.padding;
#pragma unroll 1
    for (int a = fir.up ? y_end & 1 : 0; a < fir.taps; a += step) {
        const int y = fir.up ? (y_end - a) / 2 : 2 * out_y + a - fir.padding;
        if (y < 0 || y >= fir.height || (fir.up && y_end < a)) continue;
#pragma unroll 1
        for (int b = fir.up ? x_end & 1 : 0; b < fir.taps; b += step) {
            const int x = fir.up ? (x_end - b) / 2 : 2 * out_x + b - fir.padding;
            if (x < 0 || x >= fir.width || (fir.up && x_end < b)) continue;
            visit(int64_t(y) * fir.width + x, fir.tap[a] * fir.tap[b]);
        }
    }
}

// Calls visit(input pixel, weight) for every input pixel that makes up the output pixel, always in the same order.
template <class Visit>
__device__ __forceinline__ void for_each_tap(const Fir& fir, int out_y, int out_x, const Visit& visit) {
    if (fir.taps == 2) {
        if (fir.up) return for_each_of<true, 2>(fir, out_y, out_x, visit);
        return for_each_of<false, 2>(fir, out_y, out_x, visit);
    }
    if (fir.taps == 4) {
        if (fir.up) return for_each_of<true, 4>(fir, out_y, out_x, visit);
        return for_each_of<false, 4>(fir, out_y, out_x, visit);
    }
    for_each_of_any(fir, out_y, out_x, visit);
}

// sum = the weighted sum of load(pixel, float (&)[kChannels]) over the taps.
template <int kChannels, class Load>
__device__ __forceinline__ void gather(const Fir& fir, int out_y, int out_x, float (&sum)[kChannels],
                                       const Load& load) {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) sum[i] = 0.0f;
    for_each_tap(fir, out_y, out_x, [&](int64_t pixel, float weight) {
        float values[kChannels];
        load(pixel, values);
#pragma unroll
        for (int i = 0; i < kChannels; ++i) sum[i] += weight * values[i];
    });
}

template <int kChannels, class Load>
__device__ __forceinline__ void gather(const Fir& fir, int64_t out_pixel, float (&sum)[kChannels], const Load& load) {
    const int64_t out_y = quotient(out_pixel, fir.out_width);
    gather(fir, int(out_y), int(out_pixel - out_y * fir.out_width), sum, load);
}

// load(pixel), or zeros for a pixel outside the image.
template <class Load>
__device__ __forceinline__ uint4 load_inside(const Fir& fir, int y, int x, const Load& load) {
    const bool inside = unsigned(y) < unsigned(fir.height) && unsigned(x) < unsigned(fir.width);
    return inside ? load(int64_t(y) * fir.width + x) : make_uint4(0, 0, 0, 0);
}

// Upwards by kTaps, the four outputs of a block that begins where row + padding and column + padding are even have the
// same kTaps/2 by kTaps/2 inputs. How many such blocks have any of `extent` outputs of a row or column:
EDM_FAST_HOST_DEVICE int up_blocks(const Fir& fir, int extent) {
    return (fir.padding + extent - 1) / 2 - fir.padding / 2 + 1;
}

// For each output of the block, emit(row, column, packed sum): what gather has for load(pixel), a pack.
template <class T, int kTaps, class Load, class Emit>
__device__ __forceinline__ void gather_four(const Fir& fir, int block_y, int block_x, const Load& load,
                                            const Emit& emit) {
    constexpr int kSide = kTaps / 2;
    const int y_first = block_y + fir.padding / 2, x_first = block_x + fir.padding / 2;
    uint4 raw[kSide][kSide];
#pragma unroll
    for (int a = 0; a < kSide; ++a) {
#pragma unroll
        for (int b = 0; b < kSide; ++b) raw[a][b] = load_inside(fir, y_first - a, x_first - b, load);
    }
#pragma unroll
    for (int odd = 0; odd < 4; ++odd) {
        const int y_odd = odd / 2, x_odd = odd % 2;
        const int out_y = 2 * y_first + y_odd - fir.padding, out_x = 2 * x_first + x_odd - fir.padding;
        if (unsigned(out_y) >= unsigned(fir.out_height) || unsigned(out_x) >= unsigned(fir.out_width)) continue;
        float sum[kPack<T>] = {};
#pragma unroll
        for (int a = 0; a < kSide; ++a) {
#pragma unroll
            for (int b = 0; b < kSide; ++b) {
                const float weight = fir.tap[2 * a + y_odd] * fir.tap[2 * b + x_odd];
                float values[kPack<T>];
                unpack<T>(raw[a][b], values);
#pragma unroll
                for (int i = 0; i < kPack<T>; ++i) sum[i] += weight * values[i];
            }
        }
        emit(out_y, out_x, pack<T>(sum));
    }
}

// Downwards by kTaps, kOutputs outputs of a column from (out_y, out_x) on, of which neighbours share kTaps - 2 rows.
// emit(row, packed sum) for those that there are, as above.
template <class T, int kTaps, int kOutputs, class Load, class Emit>
__device__ __forceinline__ void gather_column(const Fir& fir, int out_y, int out_x, const Load& load,
                                              const Emit& emit) {
    const int y_first = 2 * out_y - fir.padding, x_first = 2 * out_x - fir.padding;
    float sum[kOutputs][kPack<T>] = {};
#pragma unroll
    for (int row = 0; row < 2 * (kOutputs - 1) + kTaps; ++row) {
        uint4 raw[kTaps];
#pragma unroll
        for (int b = 0; b < kTaps; ++b) raw[b] = load_inside(fir, y_first + row, x_first + b, load);
#pragma unroll
        for (int b = 0; b < kTaps; ++b) {
            float values[kPack<T>];
            unpack<T>(raw[b], values);
#pragma unroll
            for (int output = 0; output < kOutputs; ++output) {
                const int a = row - 2 * output;
                if (a < 0 || a >= kTaps) continue;
                const float weight = fir.tap[a] * fir.tap[b];
#pragma unroll
                for (int i = 0; i < kPack<T>; ++i) sum[output][i] += weight * values[i];
            }
        }
    }
#pragma unroll
    for (int output = 0; output < kOutputs; ++output) {
        if (out_y + output < fir.out_height) emit(out_y + output, pack<T>(sum[output]));
    }
}

}  // namespace edm_fast::cuda
