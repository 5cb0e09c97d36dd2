// Sums over the pixels of a tile (see tile.cuh) for each of its channels, in an order that only the tile's shape sets.
//
// Mean and variance come from sums of x - k and (x - k)², k a pixel of the thread's own, which lose no digits to a
// large mean; two such results are joined by Chan's formula.
#pragma once

#include <cstdint>

#include "simt.h"
#include "tile.cuh"

namespace edm_fast::cuda {

// m2: the sum of squared distances to the mean.
struct Moments {
    float count, mean, m2;
};

__device__ __forceinline__ Moments joined(const Moments& a, const Moments& b) {
    const float count = a.count + b.count;
    const float share = count > 0.0f ? __fdividef(b.count, count) : 0.0f;
    const float distance = b.mean - a.mean;
    return {count, a.mean + distance * share, a.m2 + b.m2 + distance * distance * (a.count * share)};
}

// The moments of a warp's lanes; right in lane 0.
__device__ __forceinline__ Moments warp_joined(Moments moments) {
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
        Moments other;
        other.count = __shfl_down_sync(0xFFFFFFFFu, moments.count, unsigned(offset));
        other.mean = __shfl_down_sync(0xFFFFFFFFu, moments.mean, unsigned(offset));
        other.m2 = __shfl_down_sync(0xFFFFFFFFu, moments.m2, unsigned(offset));
        moments = joined(moments, other);
    }
    return moments;
}

// Right in lane 0.
template <class Number>
__device__ __forceinline__ Number warp_sum(Number value) {
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
        value += __shfl_down_sync(0xFFFFFFFFu, value, unsigned(offset));
    }
    return value;
}

// One thread's shifted sums for a pack of channels.
template <int kChannels>
struct ShiftedSums {
    float shift[kChannels] = {}, sum[kChannels] = {}, squares[kChannels] = {};
    int count = 0;

    __device__ __forceinline__ void add(const float (&values)[kChannels]) {
        if (count == 0) {
#pragma unroll
            for (int i = 0; i < kChannels; ++i) shift[i] = values[i];
        }
        ++count;
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
            const float distance = values[i] - shift[i];
            sum[i] += distance;
            squares[i] += distance * distance;
        }
    }
};

// The shared memory that reduce_moments needs, in floats.
constexpr int64_t moments_scratch(int threads, int slab_width) {
    return int64_t(threads / kLanes) * (2 * slab_width + 1);
}

// For all threads of the block. Calls sink(channel in the slab, its Moments over the tile's pixels) in one thread per
// channel. slab_width: the slab's channels, rounded up to whole packs. A barrier must come before scratch is used
// again.
template <class T, class Sink>
__device__ __forceinline__ void reduce_moments(const ShiftedSums<kPack<T>>& sums, const Tiling& tiling,
                                               const Tile& tile, const Place<T>& place, int slab_width, float* scratch,
                                               const Sink& sink) {
    constexpr int kChannels = kPack<T>;
    float count = float(sums.count), mean[kChannels], m2[kChannels];
    const float share_of_one = sums.count > 0 ? __fdividef(1.0f, count) : 0.0f;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
        const float distance = sums.sum[i] * share_of_one;
        const float rest = sums.squares[i] - distance * sums.sum[i];
        mean[i] = sums.shift[i] + distance;
        m2[i] = rest < 0.0f ? 0.0f : rest;
    }
    for (int offset = kLanes / 2; offset >= tiling.columns; offset /= 2) {
        const float others = __shfl_down_sync(0xFFFFFFFFu, count, unsigned(offset));
        const float total = count + others;
        const float share = total > 0.0f ? __fdividef(others, total) : 0.0f;
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
            const float distance = __shfl_down_sync(0xFFFFFFFFu, mean[i], unsigned(offset)) - mean[i];
            m2[i] += __shfl_down_sync(0xFFFFFFFFu, m2[i], unsigned(offset)) + distance * distance * (count * share);
            mean[i] += distance * share;
        }
        count = total;
    }
    const int warps = int(blockDim.x) / kLanes, warp = int(threadIdx.x) / kLanes;
    float* const counts = scratch;
    float* const means = scratch + warps;
    float* const squares = means + warps * slab_width;
    if (int(threadIdx.x) % kLanes < tiling.columns && place.count > 0) {
        if (place.column == 0) counts[warp] = count;
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
            means[warp * slab_width + place.offset + i] = mean[i];
            squares[warp * slab_width + place.offset + i] = m2[i];
        }
    }
    __syncthreads();
    for (int channel = int(threadIdx.x); channel < tile.channels; channel += int(blockDim.x)) {
        Moments total{0.0f, 0.0f, 0.0f};
        for (int i = 0; i < warps; ++i) {
            total = joined(total, {counts[i], means[i * slab_width + channel], squares[i * slab_width + channel]});
        }
        sink(channel, total);
    }
}

constexpr int64_t sums_scratch(int kinds, int threads, int slab_width) {
    return int64_t(threads / kLanes) * kinds * slab_width;
}

// The same for kKinds plain sums: sink(channel, float (&)[kKinds]).
template <class T, int kKinds, class Sink>
__device__ __forceinline__ void reduce_sums(float (&sums)[kKinds][kPack<T>], const Tiling& tiling, const Tile& tile,
                                            const Place<T>& place, int slab_width, float* scratch, const Sink& sink) {
    for (int offset = kLanes / 2; offset >= tiling.columns; offset /= 2) {
#pragma unroll
        for (int kind = 0; kind < kKinds; ++kind) {
#pragma unroll
            for (int i = 0; i < kPack<T>; ++i) {
                sums[kind][i] += __shfl_down_sync(0xFFFFFFFFu, sums[kind][i], unsigned(offset));
            }
        }
    }
    const int warps = int(blockDim.x) / kLanes, warp = int(threadIdx.x) / kLanes;
    if (int(threadIdx.x) % kLanes < tiling.columns && place.count > 0) {
#pragma unroll
        for (int kind = 0; kind < kKinds; ++kind) {
#pragma unroll
            for (int i = 0; i < kPack<T>; ++i) {
                scratch[(warp * kKinds + kind) * slab_width + place.offset + i] = sums[kind][i];
            }
        }
    }
    __syncthreads();
    for (int channel = int(threadIdx.x); channel < tile.channels; channel += int(blockDim.x)) {
        float total[kKinds] = {};
        for (int i = 0; i < warps; ++i) {
#pragma unroll
            for (int kind = 0; kind < kKinds; ++kind) {
                total[kind] += scratch[(i * kKinds + kind) * slab_width + channel];
            }
        }
        sink(channel, total);
    }
}

}  // namespace edm_fast::cuda
