// Implicit GEMM: a row is an output pixel, its terms are segments, one for each tap of each source. Rows point into the
// image, or to zeros outside of it, and nothing is copied. Two exceptions, unless factors are bfloat16: 16-bit images
// are converted to float32 first, a few samples at a time, and with very few channels the taps of a pixel are gathered
// into one segment.
#include <algorithm>

#include "conv2d_team.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

namespace {

constexpr int64_t kChunkRows = 8 * kPanelRows;
constexpr int64_t kConvertedBytes = 4 << 20;
constexpr int64_t kGatheredTerms = 64;       // taps · channels up to which they are gathered
constexpr int64_t kCachedWeights = 1 << 18;  // floats: such weights stay in cache while all rows pass over them
constexpr int64_t kPadding = 16;

struct Layout {
    int64_t height, width, pixels;  // of the output
    int64_t taps, channels;         // channels of all sources
    int64_t per_float;              // factors in a float
    bool gathered, converted;
    int64_t group;                        // samples prepared at a time
    int64_t sample_floats;                // of prepared input per sample
    int64_t prepared_floats, own_floats;  // of scratch: shared, and per thread

    explicit Layout(const Conv2dArgs& args) {
        height = output_height(args);
        width = output_width(args);
        pixels = height * width;
        taps = int64_t(args.kernel) * args.kernel;
        channels = args.channels[0] + args.channels[1];
        per_float = args.factors == kFloat32 ? 1 : 2;
        gathered = per_float == 1 && taps > 1 && taps * channels <= kGatheredTerms && args.channels[1] == 0;
        converted = !gathered && args.dtype != args.factors;
        sample_floats = gathered ? pixels * taps * channels : converted ? args.height * args.width * channels : 0;
        const int64_t fitting = sample_floats > 0 ? kConvertedBytes / 4 / sample_floats : args.samples;
        group = std::max(int64_t(1), std::min(args.samples, fitting));
        prepared_floats = round_up(group * sample_floats, kPadding);
        own_floats = round_up(channels, kPadding) + kChunkRows * kPanelWidth;
    }
};

// Source s of the group's samples as float32, or as pairs of bfloat16; dense [sample, pixel, channel].
struct Prepared {
    const float* source[2];
};

template <class T>
static void convert(const Conv2dArgs& args, const Layout& layout, int64_t first, int64_t samples, float* to,
                    const Team& team) {
    for (int s = 0; s < 2; ++s) {
        const int64_t per_sample = args.height * args.width * args.channels[s];
        const T* from = static_cast<const T*>(args.source[s]) + first * per_sample;
        const int64_t count = samples * per_sample;
        const Range range = team.share(count, 64);
        int64_t i = range.begin;
        for (; i + kLanes <= range.end; i += kLanes) store(to + i, load(from + i));
        for (; i < range.end; ++i) to[i] = to_float(from[i]);
        to += layout.group * per_sample;
    }
}

template <class T>
static void gather(const Conv2dArgs& args, const Layout& layout, int64_t first, int64_t samples, float* to,
                   const Team& team) {
    const int64_t channels = args.channels[0], terms = layout.taps * channels;
    const T* image = static_cast<const T*>(args.source[0]);
    const Range range = team.share(samples * layout.pixels);
    for (int64_t row = range.begin; row < range.end; ++row) {
        const int64_t sample = first + row / layout.pixels, pixel = row % layout.pixels;
        float* term = to + row * terms;
        for (int64_t tap = 0; tap < layout.taps; ++tap) {
            const int64_t y = pixel / layout.width + tap / args.kernel - args.padding;
            const int64_t x = pixel % layout.width + tap % args.kernel - args.padding;
            const bool inside = y >= 0 && y < args.height && x >= 0 && x < args.width;
            const T* from = image + ((sample * args.height + y) * args.width + x) * channels;
            for (int64_t c = 0; c < channels; ++c) *term++ = inside ? float(to_float(from[c])) : 0.0f;
        }
    }
}

// Where the pixels of a chunk lie in their images; divided out once, and not for every tap and panel.
struct Rows {
    int64_t sample[kChunkRows], y[kChunkRows], x[kChunkRows];

    Rows(const Layout& layout, int64_t first_row, int64_t count) {
        int64_t n = first_row / layout.pixels, i = first_row % layout.pixels / layout.width,
                j = first_row % layout.width;
        for (int64_t r = 0; r < count; ++r) {
            sample[r] = n;
            y[r] = i;
            x[r] = j;
            if (++j < layout.width) continue;
            j = 0;
            if (++i < layout.height) continue;
            i = 0;
            ++n;
        }
    }
};

// sums = the products of one panel for the `count` pixels from `first_row` on, in the group of samples.
template <class Product>
static void multiply_chunk(const Conv2dArgs& args, const Layout& layout, const Prepared& prepared, const Rows& rows,
                           int64_t first_row, int64_t count, int64_t panel, const float* zeros, float* sums) {
    const int vectors = panel_vectors(args.out_channels, panel), width = vectors * kLanes;
    const int64_t terms = layout.taps * layout.channels / Product::kPerFloat;
    const float* weight = args.weight + panel * kPanelWidth * terms;
    if (layout.gathered) {
        const float* from = prepared.source[0] + first_row * terms;
        multiply_panel<Product>([&](int64_t r) { return from + r * terms; }, count, terms, vectors, weight, sums, width,
                                false);
        return;
    }
    const float* pixel[kChunkRows];
    bool accumulate = false;
    for (int64_t tap = 0; tap < layout.taps; ++tap) {
        const int64_t dy = tap / args.kernel - args.padding, dx = tap % args.kernel - args.padding;
        for (int s = 0; s < 2 && args.channels[s] > 0; ++s) {
            const int64_t depth = args.channels[s] / Product::kPerFloat;
            for (int64_t r = 0; r < count; ++r) {
                const int64_t y = rows.y[r] + dy, x = rows.x[r] + dx;
                const bool inside = y >= 0 && y < args.height && x >= 0 && x < args.width;
                const int64_t place = (rows.sample[r] * args.height + y) * args.width + x;
                pixel[r] = inside ? prepared.source[s] + place * depth : zeros;
            }
            const float* next = weight + depth * width;
            multiply_panel<Product>([&](int64_t r) { return pixel[r]; }, count, depth, vectors, weight, sums, width,
                                    accumulate, next);
            weight = next;
            accumulate = true;
        }
    }
    // Without channels there were no products.
    if (!accumulate) std::fill_n(sums, count * width, 0.0f);
}

template <class T>
static void write_chunk(const Conv2dArgs& args, const Layout& layout, const Rows& rows, int64_t first_sample,
                        int64_t count, int64_t panel, const float* sums) {
    const int vectors = panel_vectors(args.out_channels, panel);
    for (int64_t r = 0; r < count; ++r) {
        const int64_t sample = first_sample + rows.sample[r];
        for (int v = 0; v < vectors; ++v) {
            const int64_t c = panel * kPanelWidth + v * kLanes;
            const int lanes = int(std::min<int64_t>(kLanes, args.out_channels - c));
            write_pixel<T>(args, sample, rows.y[r], rows.x[r], layout.height, layout.width, c, lanes,
                           load(sums + (r * vectors + v) * kLanes), constant_term(args, sample, c, lanes));
        }
    }
}

template <class T, class Product = Floats>
static void convolve(const Conv2dArgs& args, float* memory, const Team& team) {
    const Layout layout(args);
    float* zeros = memory + layout.prepared_floats + team.rank * layout.own_floats;
    float* sums = zeros + round_up(layout.channels, kPadding);
    std::fill_n(zeros, layout.channels, 0.0f);
    const int64_t panels = panel_count(args.out_channels);
    const bool panels_inside = layout.taps * layout.channels / Product::kPerFloat * args.out_channels <= kCachedWeights;

    for (int64_t first = 0; first < args.samples; first += layout.group) {
        const int64_t samples = std::min(layout.group, args.samples - first);
        Prepared prepared{{memory, memory + layout.group * args.height * args.width * args.channels[0]}};
        if (layout.gathered || layout.converted) {
            if (first > 0) team.barrier();
            if (layout.gathered) {
                gather<T>(args, layout, first, samples, memory, team);
            } else {
                convert<T>(args, layout, first, samples, memory, team);
            }
            team.barrier();
        } else {
            for (int s = 0; s < 2; ++s) {
                prepared.source[s] = static_cast<const float*>(args.source[s]) +
                                     first * args.height * args.width * args.channels[s] / Product::kPerFloat;
            }
        }
        const int64_t pixels = samples * layout.pixels;
        // Small images are cut finer, so that every thread has work.
        const int64_t chunk_rows = pixels >= 2 * kChunkRows || panels >= 2 * team.size ? kChunkRows : kPanelRows;
        const int64_t chunks = (pixels + chunk_rows - 1) / chunk_rows;
        const Range range = team.share(chunks * panels);
        for (int64_t item = range.begin; item < range.end; ++item) {
            const int64_t chunk = panels_inside ? item / panels : item % chunks;
            const int64_t panel = panels_inside ? item % panels : item / chunks;
            const int64_t row = chunk * chunk_rows, count = std::min(chunk_rows, pixels - row);
            const Rows rows(layout, row, count);
            multiply_chunk<Product>(args, layout, prepared, rows, row, count, panel, zeros, sums);
            write_chunk<T>(args, layout, rows, first, count, panel, sums);
        }
    }
}

}  // namespace

std::size_t direct_scratch(const Conv2dArgs& args, int threads) {
    const Layout layout(args);
    return sizeof(float) * std::size_t(layout.prepared_floats + threads * layout.own_floats);
}

void direct_conv2d(const Conv2dArgs& args, void* scratch, const Team& team) {
    float* memory = static_cast<float*>(scratch);
    switch (args.dtype) {
        case kFloat16:
            return convolve<Half>(args, memory, team);
        case kBFloat16:
#if defined(__AVX512F__)
            if (args.factors == kBFloat16) return convolve<BFloat16, Pairs>(args, memory, team);
#endif
            return convolve<BFloat16>(args, memory, team);
        default:
            return convolve<float>(args, memory, team);
    }
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
