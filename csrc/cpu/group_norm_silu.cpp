// Three passes over a sample: the moments of each channel by chunks of pixels, the two coefficients of each channel,
// and y = silu(a · x + b), resampled as it is written.
#include "group_norm_silu.h"

#include <cmath>

#include "independent.h"
#include "moments.h"
#include "network_ops.h"
#include "resample.h"
#include "scratch.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

namespace {

struct Workspace {
    float *chunk_mean, *chunk_spread;  // [N, chunks, C], without given moments
    double *mean, *variance;           // [N, C]
    float *a, *b;                      // [N, C], and what a vector reads beyond
    std::size_t bytes;

    Workspace(const GroupNormSiluArgs& args, void* memory) {
        Arena arena(memory);
        const int64_t channels = all_channels(args);
        const int64_t parts = args.moments[0] != nullptr ? 0 : args.samples * chunk_count(args.height * args.width);
        chunk_mean = arena.take<float>(parts * channels);
        chunk_spread = arena.take<float>(parts * channels);
        mean = arena.take<double>(args.samples * channels);
        variance = arena.take<double>(args.samples * channels);
        a = arena.take<float>(args.samples * channels + kLanes);
        b = arena.take<float>(args.samples * channels + kLanes);
        bytes = arena.bytes();
    }
};

template <class T>
void measure_chunk(const GroupNormSiluArgs& args, const Workspace& work, int64_t sample, int64_t chunk) {
    const int64_t pixels = args.height * args.width, channels = all_channels(args);
    const Range range = chunk_range(pixels, chunk);
    int64_t at = (sample * chunk_count(pixels) + chunk) * channels;
    for (int source = 0; source < 2; ++source) {
        const int64_t own = args.channels[source];
        if (own == 0) continue;
        const Input<T> input = input_of<T>(args, sample, source);
        float *mean = work.chunk_mean + at, *spread = work.chunk_spread + at;
        if (args.addend == nullptr) {
            const auto value = [&](int64_t pixel, int64_t c, int count) __attribute__((always_inline)) {
                return load_some(input.source + pixel * input.stride + c, count);
            };
            chunk_moments(range, own, value, mean, spread);
        } else {
            T* sum = static_cast<T*>(args.sum) + sample * pixels * own;
            const auto value = [&](int64_t pixel, int64_t c, int count) __attribute__((always_inline)) {
                const Vec x = input(pixel, c, count);
                store_some(sum + pixel * own + c, x, count);
                return x;
            };
            chunk_moments(range, own, value, mean, spread);
        }
        at += own;
    }
}

// Channels [first, last) of a sample: their means and variances.
void join_moments(const GroupNormSiluArgs& args, int64_t sample, int64_t first, int64_t last, const Workspace& work) {
    const int64_t channels = all_channels(args), pixels = args.height * args.width;
    double *mean = work.mean + sample * channels, *variance = work.variance + sample * channels;
    if (args.moments[0] == nullptr) {
        const int64_t parts = sample * chunk_count(pixels) * channels;
        return join_chunks(pixels, channels, first, last, work.chunk_mean + parts, work.chunk_spread + parts, mean,
                           variance);
    }
    for (int64_t c = first; c < last; ++c) {
        const bool second = c >= args.channels[0];
        const float* row = second ? args.moments[1] + 2 * (sample * args.channels[1] + c - args.channels[0])
                                  : args.moments[0] + 2 * (sample * args.channels[0] + c);
        mean[c] = double(row[0]);
        variance[c] = double(row[1]);
    }
}

// Of whole groups, channels [first, last) of a sample: mean and variance become those of each channel's group, the
// latter as 1 / sqrt(variance + eps).
void join_channels(const GroupNormSiluArgs& args, int64_t sample, int64_t first, int64_t last, double* mean,
                   double* variance) {
    const int64_t width = all_channels(args) / args.groups;
    if (args.pre_bias != nullptr) {
        const float* bias = args.pre_bias + sample * args.pre_bias_stride;
        for (int64_t c = first; c < last; ++c) mean[c] += double(bias[c]);
    }
    for (int64_t begin = first; begin < last; begin += width) {
        double total = 0, spread = 0;
        for (int64_t c = begin; c < begin + width; ++c) total += mean[c];
        const double group_mean = total / double(width);
        for (int64_t c = begin; c < begin + width; ++c) {
            const double difference = mean[c] - group_mean;
            spread += variance[c] + difference * difference;
        }
        const double rstd = 1.0 / std::sqrt(spread / double(width) + double(args.eps));
        const int64_t group = sample * args.groups + begin / width;
        if (args.mean != nullptr) args.mean[group] = float(group_mean);
        if (args.rstd != nullptr) args.rstd[group] = float(rstd);
        for (int64_t c = begin; c < begin + width; ++c) {
            mean[c] = group_mean;
            variance[c] = rstd;
        }
    }
}

// a and b of channels [first, last), from what join_channels leaves. As affine_of, by vectors.
template <bool kPreBias, bool kModulated>
void solve_channels(const GroupNormSiluArgs& args, int64_t sample, int64_t first, int64_t last, const double* mean,
                    const double* rstd, float* a, float* b) {
    const float* pre_bias = kPreBias ? args.pre_bias + sample * args.pre_bias_stride : nullptr;
    const float* scale = kModulated ? args.scale + sample * args.modulation_stride : nullptr;
    const float* shift = kModulated ? args.shift + sample * args.modulation_stride : nullptr;
    EDM_FAST_INDEPENDENT
    for (int64_t c = first; c < last; ++c) {
        const double modulation = kModulated ? 1.0 + double(scale[c]) : 1.0;
        const double slope = rstd[c] * double(args.weight[c]) * modulation;
        const double center = (kPreBias ? double(pre_bias[c]) : 0.0) - mean[c];
        const double offset = center * slope + double(args.bias[c]) * modulation;
        a[c] = float(slope);
        b[c] = float(kModulated ? offset + double(shift[c]) : offset);
    }
}

// Groups [begin, end) of the samples from `first` on, counted through.
void solve_groups(const GroupNormSiluArgs& args, int64_t first, Range groups, const Workspace& work) {
    const int64_t channels = all_channels(args), width = channels / args.groups;
    const bool pre_bias = args.pre_bias != nullptr, modulated = args.scale != nullptr;
    const auto solve = pre_bias ? (modulated ? solve_channels<true, true> : solve_channels<true, false>)
                                : (modulated ? solve_channels<false, true> : solve_channels<false, false>);
    while (groups.begin < groups.end) {
        const int64_t sample = first + groups.begin / args.groups, begin = groups.begin % args.groups;
        const int64_t left = groups.end - groups.begin;
        const int64_t end = begin + left < args.groups ? begin + left : args.groups;
        double *mean = work.mean + sample * channels, *variance = work.variance + sample * channels;
        join_moments(args, sample, begin * width, end * width, work);
        join_channels(args, sample, begin * width, end * width, mean, variance);
        solve(args, sample, begin * width, end * width, mean, variance, work.a + sample * channels,
              work.b + sample * channels);
        groups.begin += end - begin;
    }
}

// The map of resample.h: y of x.
template <bool kSilu>
struct Normalisation {
    const float *a, *b;

    struct Bound {
        Vec a, b;

        inline __attribute__((always_inline)) Vec operator()(Vec x) const {
            const Vec v = fma(a, x, b);
            return kSilu ? fast_silu(v) : v;
        }
    };

    inline __attribute__((always_inline)) Bound at(int64_t channel) const {
        return {load(a + channel), load(b + channel)};
    }
};

template <class T, bool kSilu>
void apply_band(const GroupNormSiluArgs& args, const Workspace& work, int64_t sample, int64_t band) {
    const int64_t channels = all_channels(args), pixels = args.height * args.width;
    const int64_t out_height = resampled_size(args.resampling, args.height);
    const int64_t out_width = resampled_size(args.resampling, args.width);
    int64_t channel = 0;
    for (int source = 0; source < 2; ++source) {
        const int64_t own = args.channels[source];
        if (own == 0) continue;
        const bool summed = args.addend != nullptr;
        const T* data = static_cast<const T*>(summed ? args.sum : args.source[source]);
        const int64_t stride = summed ? own : args.source_stride[source];
        const Image<const T> x{data + sample * pixels * stride, args.height, args.width, stride};
        const int64_t at = sample * out_height * out_width * channels + channel;
        const float *a = work.a + sample * channels + channel, *b = work.b + sample * channels + channel;
        resample_band<T, T>(args.resampling, x, own, Normalisation<kSilu>{a, b},
                            {static_cast<T*>(args.out) + at, out_height, out_width, channels}, band);
        if (args.plain != nullptr) {
            resample_band<T, T>(args.resampling, x, own, Identity{},
                                {static_cast<T*>(args.plain) + at, out_height, out_width, channels}, band);
        }
        channel += own;
    }
}

template <class T>
void run(const GroupNormSiluArgs& args, const Workspace& work, const Team& team) {
    const int64_t chunks = chunk_count(args.height * args.width);
    const int64_t bands =
        band_count(args.resampling, args.height, args.width, resampled_size(args.resampling, args.height),
                   resampled_size(args.resampling, args.width));
    for_samples(args.samples, team, [&](int64_t first, int64_t last, const Team& part) {
        if (args.moments[0] == nullptr) {
            const Range own = part.share((last - first) * chunks);
            for (int64_t unit = own.begin; unit < own.end; ++unit) {
                measure_chunk<T>(args, work, first + unit / chunks, unit % chunks);
            }
            part.barrier();
        }
        solve_groups(args, first, part.share((last - first) * args.groups), work);
        part.barrier();
        // Backwards: what was measured last is still in the cache.
        const Range own = part.share((last - first) * bands);
        for (int64_t unit = own.end - 1; unit >= own.begin; --unit) {
            if (args.silu) {
                apply_band<T, true>(args, work, first + unit / bands, unit % bands);
            } else {
                apply_band<T, false>(args, work, first + unit / bands, unit % bands);
            }
        }
    });
}

}  // namespace

std::size_t group_norm_silu_scratch(const GroupNormSiluArgs& args) {
    return Workspace(args, nullptr).bytes;
}

void group_norm_silu(const GroupNormSiluArgs& args, void* memory, const Team& team) {
    const Workspace work(args, memory);
    with_storage(args.dtype, [&](auto zero) { run<decltype(zero)>(args, work, team); });
}

void group_norm_silu(const GroupNormSiluArgs& args, int threads) {
    void* memory = scratch(group_norm_silu_scratch(args));
    const int useful = useful_threads(args.samples * args.height * args.width * all_channels(args), threads);
    run_team(useful, [&](const Team& team) { group_norm_silu(args, memory, team); });
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
