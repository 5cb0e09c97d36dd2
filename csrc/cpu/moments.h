// Means and variances of channels over the pixels of an image. The pixels are cut into chunks whose size follows from
// their number alone, each chunk is summed in float32 around its first pixel, and chunks are put together in double and
// in order; so the result depends neither on the batch nor on the threads.
#pragma once

#include <cstdint>

#include "simd.h"
#include "team.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

static inline int64_t chunk_pixels(int64_t pixels) {
    int64_t size = 16;
    while (size < 128 && 32 * size < pixels) size *= 2;
    return size;
}

static inline int64_t chunk_count(int64_t pixels) {
    return (pixels + chunk_pixels(pixels) - 1) / chunk_pixels(pixels);
}

static inline Range chunk_range(int64_t pixels, int64_t chunk) {
    const int64_t size = chunk_pixels(pixels), begin = chunk * size;
    return {begin, begin + size < pixels ? begin + size : pixels};
}

template <int kVectors, class Value>
EDM_FAST_INLINE void block_moments(Range pixels, int64_t channel, int count, const Value& value, float* mean,
                                   float* spread) {
    Vec shift[kVectors], sum[kVectors] = {}, square[kVectors] = {};
    for (int i = 0; i < kVectors; ++i) shift[i] = value(pixels.begin, channel + i * kLanes, count);
    for (int64_t pixel = pixels.begin + 1; pixel < pixels.end; ++pixel) {
        for (int i = 0; i < kVectors; ++i) {
            const Vec difference = value(pixel, channel + i * kLanes, count) - shift[i];
            sum[i] += difference;
            square[i] = fma(difference, difference, square[i]);
        }
    }
    const float reciprocal = 1.0f / float(pixels.end - pixels.begin);
    for (int i = 0; i < kVectors; ++i) {
        const Vec offset = sum[i] * reciprocal;
        const Vec left = fma(-offset, sum[i], square[i]);
        store_some(mean + channel + i * kLanes, shift[i] + offset, count);
        store_some(spread + channel + i * kLanes, select(left < 0.0f, Vec{}, left), count);
    }
}

// Of one chunk: each channel's mean, and the sum of its squared differences from it. value(pixel, channel, count) is
// called once for every vector of the chunk.
template <class Value>
EDM_FAST_INLINE void chunk_moments(Range pixels, int64_t channels, const Value& value, float* mean, float* spread) {
    constexpr int kVectors = kLanes == 16 ? 8 : 4;
    int64_t channel = 0;
    for (; channel + kVectors * kLanes <= channels; channel += kVectors * kLanes) {
        block_moments<kVectors>(pixels, channel, kLanes, value, mean, spread);
    }
    for (; channel + kLanes <= channels; channel += kLanes) {
        block_moments<1>(pixels, channel, kLanes, value, mean, spread);
    }
    if (channel < channels) block_moments<1>(pixels, channel, int(channels - channel), value, mean, spread);
}

// Channels [first, last) of all chunks: `chunk_mean` and `chunk_spread` are [chunks, channels].
static inline void join_chunks(int64_t pixels, int64_t channels, int64_t first, int64_t last, const float* chunk_mean,
                               const float* chunk_spread, double* mean, double* variance) {
    const int64_t chunks = chunk_count(pixels);
    const double reciprocal = 1.0 / double(pixels);
    for (int64_t c = first; c < last; ++c) mean[c] = variance[c] = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const Range range = chunk_range(pixels, chunk);
        const double share = double(range.end - range.begin) * reciprocal;
        const float* part = chunk_mean + chunk * channels;
        for (int64_t c = first; c < last; ++c) mean[c] += share * double(part[c]);
    }
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const Range range = chunk_range(pixels, chunk);
        const double share = double(range.end - range.begin) * reciprocal;
        const float *part = chunk_mean + chunk * channels, *spread = chunk_spread + chunk * channels;
        for (int64_t c = first; c < last; ++c) {
            const double difference = double(part[c]) - mean[c];
            variance[c] += share * difference * difference + reciprocal * double(spread[c]);
        }
    }
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
