// Each chunk of pixels is written and summed up in one pass over the memory.
#include "edm_fast/residual.h"

#include "batch.h"
#include "moments.h"
#include "network_ops.h"
#include "scratch.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

namespace {

struct Workspace {
    float *chunk_mean, *chunk_spread;  // [N, chunks, C]
    double *mean, *variance;           // [N, C]
    std::size_t bytes;

    Workspace(const ResidualArgs& args, void* memory) {
        Arena arena(memory);
        const int64_t samples = args.moments != nullptr ? args.samples : 0;
        chunk_mean = arena.take<float>(samples * chunk_count(args.pixels) * args.channels);
        chunk_spread = arena.take<float>(samples * chunk_count(args.pixels) * args.channels);
        mean = arena.take<double>(samples * args.channels);
        variance = arena.take<double>(samples * args.channels);
        bytes = arena.bytes();
    }
};

template <class T>
struct Sum {
    const T *a, *b;     // of the sample
    const float* bias;  // [C], or nullptr
    int64_t channels, out_stride;
    float scale;
    T* out;

    // Writes a vector; its value is what a reader of `out` will see.
    inline __attribute__((always_inline)) Vec operator()(int64_t pixel, int64_t channel, int count) const {
        const int64_t at = pixel * channels + channel;
        Vec sum = load_some(a + at, count);
        if (b != nullptr) sum += load_some(b + at, count);
        if (bias != nullptr) sum += load_some(bias + channel, count);
        sum *= scale;
        store_some(out + pixel * out_stride + channel, sum, count);
        return rounded<T>(sum);
    }
};

template <class T>
Sum<T> sum_of(const ResidualArgs& args, int64_t sample) {
    const int64_t image = args.pixels * args.channels;
    const T* b = static_cast<const T*>(args.b);
    return {static_cast<const T*>(args.a) + sample * image,
            b == nullptr ? nullptr : b + sample * image,
            args.bias,
            args.channels,
            args.out_stride,
            args.scale,
            static_cast<T*>(args.out) + sample * args.pixels * args.out_stride};
}

template <class T>
void write(const ResidualArgs& args, int64_t sample, Range pixels) {
    const Sum<T> sum = sum_of<T>(args, sample);
    for (int64_t pixel = pixels.begin; pixel < pixels.end; ++pixel) {
        for_vectors(args.channels, [&](int64_t c, int count) __attribute__((always_inline)) { sum(pixel, c, count); });
    }
}

void write_moments(const ResidualArgs& args, const Workspace& work, int64_t sample, Range channels) {
    const int64_t parts = sample * chunk_count(args.pixels) * args.channels;
    double *mean = work.mean + sample * args.channels, *variance = work.variance + sample * args.channels;
    join_chunks(args.pixels, args.channels, channels.begin, channels.end, work.chunk_mean + parts,
                work.chunk_spread + parts, mean, variance);
    float* moments = args.moments + sample * args.channels * 2;
    for (int64_t c = channels.begin; c < channels.end; ++c) {
        moments[2 * c] = float(mean[c]);
        moments[2 * c + 1] = float(variance[c]);
    }
}

}  // namespace

std::size_t residual_scratch(const ResidualArgs& args) {
    return Workspace(args, nullptr).bytes;
}

void residual(const ResidualArgs& args, void* memory, const Team& team) {
    const Workspace work(args, memory);
    const int64_t chunks = chunk_count(args.pixels);
    with_storage(args.dtype, [&](auto zero) {
        using T = decltype(zero);
        for_samples(args.samples, team, [&](int64_t first, int64_t last, const Team& part) {
            const Range own = part.share((last - first) * chunks);
            for (int64_t unit = own.begin; unit < own.end; ++unit) {
                const int64_t sample = first + unit / chunks, chunk = unit % chunks;
                const Range pixels = chunk_range(args.pixels, chunk);
                if (args.moments == nullptr) {
                    write<T>(args, sample, pixels);
                } else {
                    const int64_t at = (sample * chunks + chunk) * args.channels;
                    chunk_moments(pixels, args.channels, sum_of<T>(args, sample), work.chunk_mean + at,
                                  work.chunk_spread + at);
                }
            }
            if (args.moments == nullptr) return;
            part.barrier();
            for (int64_t sample = first; sample < last; ++sample) {
                write_moments(args, work, sample, part.share(args.channels, kLanes));
            }
        });
    });
}

void residual(const ResidualArgs& args, int threads) {
    void* memory = scratch(residual_scratch(args));
    const int useful = useful_threads(args.samples * args.pixels * args.channels, threads);
    run_team(useful, [&](const Team& team) { residual(args, memory, team); });
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
