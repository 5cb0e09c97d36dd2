// The separable filter of resample.h for images of few channels, or of some that are no whole vectors. A row is kept as
// one run of floats, of which each pixel is read and written by whole vectors in ascending order: what goes beyond a
// pixel is overwritten by the next, and behind the last there is room.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "filter_sums.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

constexpr int64_t kNarrowChannels = 256;  // fewer than
constexpr int64_t kNarrowColumns = 128, kNarrowFloats = 1024;

static inline bool is_narrow(int64_t channels) {
    return channels < 64 || (channels % kLanes != 0 && channels < kNarrowChannels);
}

// Pixels [columns.begin, columns.end) of a row, through the map.
template <class From, class Map>
static void read_pixels(const From* row, int64_t stride, Range columns, int64_t channels, const Map& map, float* to) {
    if constexpr (std::is_same_v<Map, Identity>) {
        if (stride == channels) {
            const From* from = row + columns.begin * channels;
            for_vectors((columns.end - columns.begin) * channels,
                        [&](int64_t i, int count)
                            __attribute__((always_inline)) { store(to + i, load_some(from + i, count)); });
            return;
        }
    }
    for (int64_t column = columns.begin; column < columns.end; ++column, to += channels) {
        const From* from = row + column * stride;
        for_vectors(channels, [&](int64_t c, int count) __attribute__((always_inline)) {
            store(to + c, map.at(c)(load_some(from + c, count)));
        });
    }
}

// Outputs along a row, of a line that begins with pixel `first`.
static void filter_line(const float* line, int64_t first, int64_t channels, const Window* windows, int64_t columns,
                        float* to) {
    for (int64_t j = 0; j < columns; ++j, to += channels) {
        const Window& window = windows[j];
        const float* from = line + (window.count == 0 ? 0 : (window.first - first) * channels);
        for (int64_t c = 0; c < channels; c += kLanes) {
            Vec sum{};
            for (int i = 0; i < window.count; ++i) {
                sum = fma(splat(window.weight[i]), load(from + i * channels + c), sum);
            }
            store(to + c, sum);
        }
    }
}

template <class From, class To, class Map>
static void filter_narrow(const Resampling& filter, const Image<const From>& x, int64_t channels, const Map& map,
                          const Image<To>& out, Range rows) {
    Window windows[kNarrowColumns];
    alignas(64) float kept[kMaxTaps][kNarrowFloats + kLanes];
    alignas(64) float line[2 * kNarrowFloats + kMaxTaps * kNarrowChannels + kLanes];
    alignas(64) float sums[kNarrowFloats + kLanes];
    const int64_t ring = ring_rows(filter), most = std::min(kNarrowColumns, kNarrowFloats / channels);
    for (int64_t begin = 0; begin < out.width; begin += most) {
        const int64_t columns = std::min(most, out.width - begin);
        int64_t first = x.width, last = 0;
        for (int64_t j = 0; j < columns; ++j) {
            windows[j] = window_at(filter, begin + j, x.width);
            if (windows[j].count == 0) continue;
            first = std::min(first, windows[j].first);
            last = std::max(last, windows[j].first + windows[j].count);
        }
        std::fill_n(line + std::max<int64_t>(last - first, 0) * channels, kLanes, 0.0f);
        int64_t next = 0;
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            const Window window = window_at(filter, row, x.height);
            if (next < window.first) next = window.first;
            for (; next < window.first + window.count; ++next) {
                read_pixels(x.at(next, 0), x.stride, {first, last}, channels, map, line);
                filter_line(line, first, channels, windows, columns, kept[next % ring]);
            }
            const float* from[kMaxTaps];
            for (int i = 0; i < window.count; ++i) from[i] = kept[(window.first + i) % ring];
            To* to = out.at(row, begin);
            if (out.stride == channels) {
                weigh(window, from, columns * channels, to);
                continue;
            }
            weigh(window, from, columns * channels, sums);
            for (int64_t j = 0; j < columns; ++j, to += out.stride) {
                for_vectors(channels, [&](int64_t c, int count) __attribute__((always_inline)) {
                    store_some(to + c, load(sums + j * channels + c), count);
                });
            }
        }
    }
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
