// What the ways to filter an image share: which inputs an output has, and sums of them.
#pragma once

#include <cstdint>

#include "batch.h"
#include "edm_fast/resample.h"
#include "simd.h"
#include "team.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

template <class T>
struct Image {
    T* data;
    int64_t height, width;
    int64_t stride;  // elements from a pixel to the next; rows follow densely

    T* at(int64_t row, int64_t column) const { return data + (row * width + column) * stride; }
};

// A map is bound to a vector of channels with at(channel) and then called with values.
struct Identity {
    Identity at(int64_t) const { return {}; }
    Vec operator()(Vec value) const { return value; }
};

// The inputs of one output along one axis: `count` from `first`, all inside the image, and their weights.
struct Window {
    int64_t first;
    int count;
    float weight[kMaxTaps];
};

static inline Window window_at(const Resampling& filter, int64_t output, int64_t size) {
    Window window{};
    const int64_t p = filter.padding;
    const bool up = filter.direction > 0;
    const int parity = int((output + p) & 1);
    const int taps = up ? filter.taps / 2 : filter.taps;
    // Going up, the tap that meets the first input is the last of the taps with the output's parity.
    const int64_t first = up ? (output + p - parity) / 2 - (taps - 1) : 2 * output - p;
    for (int i = 0; i < taps; ++i) {
        const int64_t input = first + i;
        if (input < 0 || input >= size) continue;
        if (window.count == 0) window.first = input;
        window.weight[window.count++] = up ? 2.0f * filter.tap[2 * (taps - 1 - i) + parity] : filter.tap[i];
    }
    return window;
}

// How many input rows an output needs, and a filter keeps.
static inline int64_t ring_rows(const Resampling& filter) {
    return filter.direction > 0 ? filter.taps / 2 : filter.taps;
}

// to[c] = sum_i weight[i] · from[i][c], in the order of i. What lies `ahead` elements behind the last two of them,
// which no output before this one has read, is fetched meanwhile.
template <int kCount, class From, class To>
EDM_FAST_INLINE void weigh_fixed(const float* weight, const From* const* from, int64_t channels, To* to,
                                 int64_t ahead) {
    Vec factor[kCount];
    const From* own[kCount];
    for (int i = 0; i < kCount; ++i) {
        factor[i] = splat(weight[i]);
        own[i] = from[i];
    }
    for_vectors(channels, [&](int64_t c, int count) __attribute__((always_inline)) {
        Vec sum{};
        for (int i = 0; i < kCount; ++i) sum = fma(factor[i], load_some(own[i] + c, count), sum);
        if (ahead != 0) {
            for (int i = kCount > 2 ? kCount - 2 : 0; i < kCount; ++i) __builtin_prefetch(own[i] + ahead + c);
        }
        store_some(to + c, sum, count);
    });
}

template <class From, class To>
static void weigh(const Window& window, const From* const* from, int64_t channels, To* to, int64_t ahead = 0) {
    switch (window.count) {
        case 1:
            return weigh_fixed<1>(window.weight, from, channels, to, ahead);
        case 2:
            return weigh_fixed<2>(window.weight, from, channels, to, ahead);
        case 3:
            return weigh_fixed<3>(window.weight, from, channels, to, ahead);
        case 4:
            return weigh_fixed<4>(window.weight, from, channels, to, ahead);
        case 6:
            return weigh_fixed<6>(window.weight, from, channels, to, ahead);
        case 8:
            return weigh_fixed<8>(window.weight, from, channels, to, ahead);
    }
    for_vectors(channels, [&](int64_t c, int count) __attribute__((always_inline)) {
        Vec sum{};
        for (int i = 0; i < window.count; ++i) {
            sum = fma(splat(window.weight[i]), load_some(from[i] + c, count), sum);
        }
        store_some(to + c, sum, count);
    });
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
