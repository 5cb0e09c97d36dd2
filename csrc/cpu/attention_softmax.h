// The softmax of one row of scores.
#pragma once

#include <algorithm>
#include <limits>

#include "simd.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

struct Softmax {
    float largest, sum;
};

EDM_FAST_INLINE Vec larger(Vec a, Vec b) {
    return select(a > b, a, b);
}

EDM_FAST_INLINE float largest_lane(Vec value) {
    float lanes[kLanes];
    store(lanes, value);
    for (int width = kLanes / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
    }
    return lanes[0];
}

// Replaces the scores by e^(score - largest) and returns what divides them. The rest of the last vector becomes 0. A
// NaN among the scores may not be the largest, but makes the sum NaN.
static inline Softmax softmax(float* scores, int64_t count) {
    constexpr int kStreams = 4;  // independent chains hide the latency of one
    constexpr int64_t kStep = kStreams * kLanes;
    const int64_t whole = (count + kLanes - 1) / kLanes * kLanes;
    std::fill(scores + count, scores + whole, -std::numeric_limits<float>::infinity());
    Vec largest[kStreams], sum[kStreams] = {};
    for (Vec& stream : largest) stream = load(scores);
    int64_t i = 0;
    for (; i + kStep <= whole; i += kStep) {
        for (int s = 0; s < kStreams; ++s) largest[s] = larger(load(scores + i + s * kLanes), largest[s]);
    }
    for (; i < whole; i += kLanes) largest[0] = larger(load(scores + i), largest[0]);
    const float top = largest_lane(larger(larger(largest[0], largest[1]), larger(largest[2], largest[3])));
    const Vec shift = splat(top);
    for (i = 0; i + kStep <= whole; i += kStep) {
        for (int s = 0; s < kStreams; ++s) {
            const Vec weight = exp_of_difference(load(scores + i + s * kLanes) - shift);
            store(scores + i + s * kLanes, weight);
            sum[s] = sum[s] + weight;
        }
    }
    for (; i < whole; i += kLanes) {
        const Vec weight = exp_of_difference(load(scores + i) - shift);
        store(scores + i, weight);
        sum[0] = sum[0] + weight;
    }
    return {top, sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]))};
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
