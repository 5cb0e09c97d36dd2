// The separable filter of resample.h for any taps. Input rows are filtered along the row once, and the last of them are
// kept, in the first level of cache, for the filter along the columns. Pixels are read and written in the order in
// which they lie in memory, kFilterChannels of them at a time: by single vectors of channels, a row is as many streams
// as it has pixels, which is too many to be fetched ahead.
#pragma once

#include <cstdint>
#include <type_traits>

#include "filter_narrow.h"
#include "filter_sums.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

constexpr int64_t kFilterRows = 8, kFilterColumns = 4, kFilterChannels = 256;

// Some channels of one input row, each element of which goes through the map once, filtered for the columns of
// `windows`. What lies `ahead` elements further on, the next row or 0 for none, is fetched meanwhile.
template <class From, class Map>
static void filter_row(const From* row, int64_t stride, int64_t ahead, Range channels, const Map& map,
                       const Window* windows, int64_t columns, float (*to)[kFilterChannels]) {
    const int64_t count = channels.end - channels.begin;
    row += channels.begin;
    if constexpr (std::is_same_v<Map, Identity>) {
        for (int64_t j = 0; j < columns; ++j) {
            const From* from[kMaxTaps];
            for (int i = 0; i < windows[j].count; ++i) from[i] = row + (windows[j].first + i) * stride;
            weigh(windows[j], from, count, to[j], ahead);
        }
    } else {
        constexpr int64_t kInputs = 2 * kFilterColumns + kMaxTaps;
        alignas(64) float mapped[kInputs][kFilterChannels];
        int64_t next = 0;
        for (int64_t j = 0; j < columns; ++j) {
            const float* from[kMaxTaps];
            for (int i = 0; i < windows[j].count; ++i) {
                const int64_t column = windows[j].first + i;
                float* values = mapped[column % kInputs];
                from[i] = values;
                if (column < next) continue;
                next = column + 1;
                const From* pixel = row + column * stride;
                for_vectors(count, [&](int64_t c, int some) __attribute__((always_inline)) {
                    __builtin_prefetch(pixel + ahead + c);
                    store(values + c, map.at(channels.begin + c)(load_some(pixel + c, some)));
                });
            }
            weigh(windows[j], from, count, to[j]);
        }
    }
}

template <class From, class To, class Map>
static void filter_tile(const Resampling& filter, const Image<const From>& x, Range channels, const Map& map,
                        const Image<To>& out, Range rows, Range columns, const Window* windows) {
    alignas(64) float kept[kMaxTaps][kFilterColumns][kFilterChannels];
    const int64_t ring = ring_rows(filter);
    const int64_t width = columns.end - columns.begin;
    int64_t next = 0;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const Window window = window_at(filter, row, x.height);
        if (next < window.first) next = window.first;
        for (; next < window.first + window.count; ++next) {
            const int64_t ahead = next + 1 < x.height ? x.width * x.stride : 0;
            filter_row(x.at(next, 0), x.stride, ahead, channels, map, windows, width, kept[next % ring]);
        }
        for (int64_t j = 0; j < width; ++j) {
            const float* from[kMaxTaps];
            for (int i = 0; i < window.count; ++i) from[i] = kept[(window.first + i) % ring][j];
            weigh(window, from, channels.end - channels.begin, out.at(row, columns.begin + j) + channels.begin);
        }
    }
}

// to[c] = sum_i down.weight[i] · (sum_j along.weight[j] · x[i][j][c]), x from `corner`. kTaps is the count of both
// windows, or 0 for any.
template <int kTaps, class From, class To>
static void weigh_square(const Window& down, const Window& along, const From* corner, int64_t row_stride,
                         int64_t pixel_stride, int64_t channels, To* to) {
    const int rows = kTaps != 0 ? kTaps : down.count, columns = kTaps != 0 ? kTaps : along.count;
    Vec down_weight[kMaxTaps], along_weight[kMaxTaps];
    for (int i = 0; i < rows; ++i) down_weight[i] = splat(down.weight[i]);
    for (int j = 0; j < columns; ++j) along_weight[j] = splat(along.weight[j]);
    for_vectors(channels, [&](int64_t c, int count) __attribute__((always_inline)) {
        Vec sum{};
        for (int i = 0; i < rows; ++i) {
            const From* from = corner + i * row_stride + c;
            Vec line{};
            for (int j = 0; j < columns; ++j) {
                line = fma(along_weight[j], load_some(from + j * pixel_stride, count), line);
            }
            sum = fma(down_weight[i], line, sum);
        }
        store_some(to + c, sum, count);
    });
}

// Up by four taps, without a map: the four inputs of an output are read faster than what would be kept of them is
// written.
template <class From, class To>
static void filter_up(const Resampling& filter, const Image<const From>& x, int64_t channels, const Image<To>& out,
                      Range rows) {
    const int64_t row_stride = x.width * x.stride;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const Window down = window_at(filter, row, x.height);
        for (int64_t column = 0; column < out.width; ++column) {
            const Window along = window_at(filter, column, x.width);
            const From* corner = x.at(down.first, along.first);
            if (down.count == 2 && along.count == 2) {
                weigh_square<2>(down, along, corner, row_stride, x.stride, channels, out.at(row, column));
            } else {
                weigh_square<0>(down, along, corner, row_stride, x.stride, channels, out.at(row, column));
            }
        }
    }
}

template <class From, class To, class Map>
static void filter_rows(const Resampling& filter, const Image<const From>& x, int64_t channels, const Map& map,
                        const Image<To>& out, Range rows) {
    if (is_narrow(channels)) return filter_narrow(filter, x, channels, map, out, rows);
    if constexpr (std::is_same_v<Map, Identity>) {
        if (filter.direction > 0 && filter.taps <= 4) return filter_up(filter, x, channels, out, rows);
    }
    Window windows[kFilterColumns];
    for (int64_t begin = 0; begin < out.width; begin += kFilterColumns) {
        const int64_t end = begin + kFilterColumns < out.width ? begin + kFilterColumns : out.width;
        for (int64_t column = begin; column < end; ++column) {
            windows[column - begin] = window_at(filter, column, x.width);
        }
        for (int64_t c = 0; c < channels; c += kFilterChannels) {
            const int64_t last = c + kFilterChannels < channels ? c + kFilterChannels : channels;
            filter_tile(filter, x, {c, last}, map, out, rows, {begin, end}, windows);
        }
    }
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
