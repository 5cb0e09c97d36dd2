// Resampling of one channels-last image, of which each element may first go through a map; see
// csrc/include/edm_fast/resample.h. An image is done in bands, whatever the direction: no output depends on the others,
// so any thread may take any band.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "batch.h"
#include "edm_fast/resample.h"
#include "filter.h"
#include "moments.h"
#include "simd.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

static inline int64_t resampled_size(const Resampling& filter, int64_t size) {
    if (filter.direction == 0) return size;
    if (filter.direction > 0) return 2 * size - 2 + filter.taps - 2 * filter.padding;
    const int64_t margin = size + 2 * filter.padding - filter.taps;
    return margin < 0 ? 0 : margin / 2 + 1;
}

// The linear map's transpose: from an image of the resampled size back to one of the original size.
static inline Resampling transposed(const Resampling& filter) {
    Resampling result = filter;
    result.direction = -filter.direction;
    for (float& tap : result.tap) tap *= filter.direction < 0 ? 0.5f : 2.0f;
    return result;
}

enum class Path { kNone, kHalve, kDouble, kFilter };

static inline Path resampling_path(const Resampling& filter, int64_t height, int64_t width, int64_t out_height,
                                   int64_t out_width) {
    if (filter.direction == 0) return Path::kNone;
    if (filter.taps != 2 || filter.padding != 0) return Path::kFilter;
    if (filter.direction < 0) return Path::kHalve;
    // The transpose of halving an odd size leaves a row or column without any source.
    return out_height == 2 * height && out_width == 2 * width ? Path::kDouble : Path::kFilter;
}

static inline int64_t band_count(const Resampling& filter, int64_t height, int64_t width, int64_t out_height,
                                 int64_t out_width) {
    switch (resampling_path(filter, height, width, out_height, out_width)) {
        case Path::kNone:
            return chunk_count(height * width);
        case Path::kHalve:
            return out_height;
        case Path::kDouble:
            return height;
        case Path::kFilter:
            break;
    }
    return (out_height + kFilterRows - 1) / kFilterRows;
}

template <class From, class To, class Map>
static void map_pixels(const Image<const From>& x, int64_t channels, const Map& map, const Image<To>& out,
                       Range pixels) {
    for (int64_t pixel = pixels.begin; pixel < pixels.end; ++pixel) {
        const From* from = x.data + pixel * x.stride;
        To* to = out.data + pixel * out.stride;
        if constexpr (std::is_same_v<Map, Identity> && std::is_same_v<From, To>) {
            std::memcpy(to, from, sizeof(To) * size_t(channels));
        } else {
            for_vectors(channels, [&](int64_t c, int count) __attribute__((always_inline)) {
                store_some(to + c, map.at(c)(load_some(from + c, count)), count);
            });
        }
    }
}

template <class From, class To, class Map>
static void halve_row(float factor, const Image<const From>& x, int64_t channels, const Map& map, const Image<To>& out,
                      int64_t row) {
    for (int64_t column = 0; column < out.width; ++column) {
        const From *top = x.at(2 * row, 2 * column), *bottom = x.at(2 * row + 1, 2 * column);
        To* to = out.at(row, column);
        for_vectors(channels, [&](int64_t c, int count) __attribute__((always_inline)) {
            const auto bound = map.at(c);
            const Vec upper = bound(load_some(top + c, count)) + bound(load_some(top + x.stride + c, count));
            const Vec lower = bound(load_some(bottom + c, count)) + bound(load_some(bottom + x.stride + c, count));
            store_some(to + c, (upper + lower) * factor, count);
        });
    }
}

template <class From, class To, class Map>
static void double_row(float factor, const Image<const From>& x, int64_t channels, const Map& map, const Image<To>& out,
                       int64_t row) {
    for (int64_t column = 0; column < x.width; ++column) {
        const From* from = x.at(row, column);
        To *top = out.at(2 * row, 2 * column), *bottom = out.at(2 * row + 1, 2 * column);
        for_vectors(channels, [&](int64_t c, int count) __attribute__((always_inline)) {
            const Vec value = map.at(c)(load_some(from + c, count)) * factor;
            store_some(top + c, value, count);
            store_some(top + out.stride + c, value, count);
            store_some(bottom + c, value, count);
            store_some(bottom + out.stride + c, value, count);
        });
    }
}

template <class From, class To, class Map>
static void resample_band(const Resampling& filter, const Image<const From>& x, int64_t channels, const Map& map,
                          const Image<To>& out, int64_t band) {
    const float tap = filter.tap[0];
    switch (resampling_path(filter, x.height, x.width, out.height, out.width)) {
        case Path::kNone:
            return map_pixels(x, channels, map, out, chunk_range(x.height * x.width, band));
        case Path::kHalve:
            return halve_row(tap * tap, x, channels, map, out, band);
        case Path::kDouble:
            return double_row(4.0f * tap * tap, x, channels, map, out, band);
        case Path::kFilter:
            break;
    }
    const int64_t begin = band * kFilterRows;
    const int64_t end = begin + kFilterRows < out.height ? begin + kFilterRows : out.height;
    filter_rows(filter, x, channels, map, out, {begin, end});
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
