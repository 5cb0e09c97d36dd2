// The softmax of one row of scores.
#pragma once

#include <algorithm>
#include <limits>

#include "simd.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

struct Softmax {
    float largest, sum;
};

// Replaces the scores by e^(score - largest) and returns what divides them. The rest of the last vector becomes 0.
static inline Softmax softmax(float* scores, int64_t count) {
    constexpr int kStreams = 4;  // independent sums hide the latency of one
    const int64_t whole = (count + kLanes - 1) / kLanes * kLanes;
    std::fill(scores + count, scores + whole, -std::numeric_limits<float>::infinity());
    Vec largest[kStreams], sum[kStreams] = {};
    for (Vec& stream : largest) stream = load(scores);
    int64_t i = 0;
    for (; i + kStreams * kLanes <= whole; i += kStreams * kLanes) {
        for (int s = 0; s < kStreams; ++s) {
            const Vec score = load(scores + i + s * kLanes);
            largest[s] = select(score > largest[s], score, largest[s]);
        }
    }
    for (; i < whole; i += kLanes) {
        const Vec score = load(scores + i);
        largest[0] = select(score > largest[0], score, largest[0]);
    }
    float lanes[kStreams * kLanes];
    for (int s = 0; s < kStreams; ++s) store(lanes + s * kLanes, largest[s]);
    const float top = *std::max_element(lanes, lanes + kStreams * kLanes);
    for (i = 0; i + kStreams * kLanes <= whole; i += kStreams * kLanes) {
        for (int s = 0; s < kStreams; ++s) {
            const Vec weight = exp(load(scores + i + s * kLanes) - top);
            store(scores + i + s * kLanes, weight);
            sum[s] = sum[s] + weight;
        }
    }
    for (; i < whole; i += kLanes) {
        const Vec weight = exp(load(scores + i) - top);
        store(scores + i, weight);
        sum[0] = sum[0] + weight;
    }
    return {top, sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]))};
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
