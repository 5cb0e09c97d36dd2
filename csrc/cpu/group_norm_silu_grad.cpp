// The backward of group_norm_silu. With x̂ = (h - mean) · rstd and v = a · x + b as in the forward, dv = gy · silu'(v),
// where gy is grad_out taken back through the resampling, and sums over a sample's pixels of each channel
//
//   A = Σ dv,  B = Σ dv · x̂,  X = Σ x̂
//
// all gradients follow: with k = weight · (1 + scale) and, over a group of m elements, S1 = Σ k A / m, S2 = Σ k B / m,
//
//   grad_h = rstd · (k dv - S1 - S2 x̂) = a · dv + q · x + r
//
// Two passes: sums, then grad_h; both compute dv, which is cheaper than to write and read it. Where there is a
// resampling, the gradients at the input's resolution are put into working memory first.
#include <initializer_list>
#include <type_traits>

#include "group_norm_silu.h"
#include "moments.h"
#include "resample.h"
#include "scratch.h"
#include "team.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

namespace {

// The gradients of out and plain for one sample, at the input's resolution and [H, W, C] dense: in their own type, or
// float32 in working memory.
template <class G>
struct Gradients {
    const G *out, *plain;  // plain may be nullptr
};

// Of one sample; a slot of working memory is used for one sample after the other.
struct Workspace {
    float *sum_dv, *sum_dv_x, *sum_x;         // A, B and X of chunks, [chunks, C]
    double *total_dv, *total_dv_x, *total_x;  // [C]
    float *a, *b, *rstd, *offset, *q, *r;     // [C], and what a vector reads beyond; x̂ = rstd · x + offset
    float *grad_out, *grad_plain;             // [H, W, C], with a resampling

    Workspace(const GroupNormSiluGradArgs& args, Arena& arena) {
        const GroupNormSiluArgs& forward = args.forward;
        const int64_t channels = all_channels(forward), pixels = forward.height * forward.width;
        const int64_t parts = chunk_count(pixels) * channels;
        for (float** sums : {&sum_dv, &sum_dv_x, &sum_x}) *sums = arena.take<float>(parts);
        for (double** totals : {&total_dv, &total_dv_x, &total_x}) *totals = arena.take<double>(channels);
        for (float** rows : {&a, &b, &rstd, &offset, &q, &r}) *rows = arena.take<float>(channels + kLanes);
        const bool resampled = forward.resampling.direction != 0;
        grad_out = arena.take<float>(resampled ? pixels * channels : 0);
        grad_plain = arena.take<float>(resampled && args.grad_plain != nullptr ? pixels * channels : 0);
    }
};

// a, b, rstd and offset, before anything is summed.
void fill_coefficients(const GroupNormSiluArgs& args, int64_t sample, Range channels, const Workspace& work) {
    const int64_t width = all_channels(args) / args.groups;
    for (int64_t c = channels.begin; c < channels.end; ++c) {
        const int64_t group = sample * args.groups + c / width;
        const double mean = double(args.mean[group]), rstd = double(args.rstd[group]);
        affine_of(args, sample, c, mean, rstd, work.a + c, work.b + c);
        work.rstd[c] = args.rstd[group];
        work.offset[c] = float((pre_bias_of(args, sample, c) - mean) * rstd);
    }
}

template <class T>
void unsample_band(const GroupNormSiluArgs& args, const void* gradient, int64_t sample, int64_t band, float* to) {
    const int64_t channels = all_channels(args);
    const int64_t height = resampled_size(args.resampling, args.height);
    const int64_t width = resampled_size(args.resampling, args.width);
    const T* from = static_cast<const T*>(gradient) + sample * height * width * channels;
    resample_band<T, float>(transposed(args.resampling), {from, height, width, channels}, channels, Identity{},
                            {to, args.height, args.width, channels}, band);
}

template <bool kSilu, class G>
EDM_FAST_INLINE Vec gradient_of_v(const G* gradient, int count, Vec a, Vec x, Vec b) {
    const Vec value = load_some(gradient, count);
    return kSilu ? value * silu_slope(fma(a, x, b)) : value;
}

template <bool kSilu, int kVectors, class T, class G>
EDM_FAST_INLINE void sum_block(const Input<T>& input, const G* gradient, int64_t stride, Range pixels, int64_t channel,
                               int count, const Workspace& work, int64_t first, int64_t at) {
    Vec a[kVectors], b[kVectors], rstd[kVectors], offset[kVectors];
    Vec sum_dv[kVectors] = {}, sum_dv_x[kVectors] = {}, sum_x[kVectors] = {};
    for (int i = 0; i < kVectors; ++i) {
        const int64_t c = first + channel + i * kLanes;
        a[i] = load(work.a + c);
        b[i] = load(work.b + c);
        rstd[i] = load(work.rstd + c);
        offset[i] = load(work.offset + c);
    }
    for (int64_t pixel = pixels.begin; pixel < pixels.end; ++pixel) {
        for (int i = 0; i < kVectors; ++i) {
            const int64_t c = channel + i * kLanes;
            const Vec x = input(pixel, c, count);
            const Vec dv = gradient_of_v<kSilu>(gradient + pixel * stride + first + c, count, a[i], x, b[i]);
            const Vec normal = fma(rstd[i], x, offset[i]);
            sum_dv[i] += dv;
            sum_dv_x[i] = fma(dv, normal, sum_dv_x[i]);
            sum_x[i] += normal;
        }
    }
    for (int i = 0; i < kVectors; ++i) {
        const int64_t c = at + first + channel + i * kLanes;
        store_some(work.sum_dv + c, sum_dv[i], count);
        store_some(work.sum_dv_x + c, sum_dv_x[i], count);
        store_some(work.sum_x + c, sum_x[i], count);
    }
}

template <bool kSilu, class T, class G>
void sum_chunk(const GroupNormSiluArgs& args, int64_t sample, const Gradients<G>& gradients, int64_t chunk,
               const Workspace& work) {
    constexpr int kVectors = kLanes == 16 ? 2 : 1;
    const int64_t channels = all_channels(args);
    const Range pixels = chunk_range(args.height * args.width, chunk);
    int64_t first = 0;
    for (int source = 0; source < 2; ++source) {
        const int64_t own = args.channels[source], at = chunk * channels;
        if (own == 0) continue;
        const Input<T> input = input_of<T>(args, sample, source);
        int64_t c = 0;
        for (; c + kVectors * kLanes <= own; c += kVectors * kLanes) {
            sum_block<kSilu, kVectors>(input, gradients.out, channels, pixels, c, kLanes, work, first, at);
        }
        for (; c < own; c += kLanes) {
            const int count = own - c < kLanes ? int(own - c) : kLanes;
            sum_block<kSilu, 1>(input, gradients.out, channels, pixels, c, count, work, first, at);
        }
        first += own;
    }
}

void total_channels(const GroupNormSiluArgs& args, int64_t first, int64_t last, const Workspace& work) {
    const int64_t channels = all_channels(args), chunks = chunk_count(args.height * args.width);
    for (int64_t c = first; c < last; ++c) work.total_dv[c] = work.total_dv_x[c] = work.total_x[c] = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t at = chunk * channels;
        for (int64_t c = first; c < last; ++c) {
            work.total_dv[c] += double(work.sum_dv[at + c]);
            work.total_dv_x[c] += double(work.sum_dv_x[at + c]);
            work.total_x[c] += double(work.sum_x[at + c]);
        }
    }
}

// All that needs no second pass, and the coefficients of that pass.
void solve_group(const GroupNormSiluGradArgs& args, int64_t sample, int64_t group, const Workspace& work) {
    const GroupNormSiluArgs& forward = args.forward;
    const int64_t channels = all_channels(forward), width = channels / forward.groups;
    const int64_t pixels = forward.height * forward.width, first = group * width, last = first + width;
    total_channels(forward, first, last, work);
    double sum = 0, sum_x = 0;
    for (int64_t c = first; c < last; ++c) {
        const double k = modulation_of(forward, sample, c) * double(forward.weight[c]);
        sum += k * work.total_dv[c];
        sum_x += k * work.total_dv_x[c];
    }
    const double rstd = double(forward.rstd[sample * forward.groups + group]);
    const double elements = double(width * pixels), mean = sum / elements, mean_x = sum_x / elements;
    for (int64_t c = first; c < last; ++c) {
        const double modulation = modulation_of(forward, sample, c), weight = double(forward.weight[c]);
        const double dv = work.total_dv[c], dv_x = work.total_dv_x[c];
        const int64_t at = sample * channels + c;
        if (args.grad_shift != nullptr) args.grad_shift[at] = float(dv);
        if (args.grad_scale != nullptr) args.grad_scale[at] = float(weight * dv_x + double(forward.bias[c]) * dv);
        if (args.grad_weight != nullptr) args.grad_weight[at] = float(modulation * dv_x);
        if (args.grad_bias != nullptr) args.grad_bias[at] = float(modulation * dv);
        if (args.grad_pre_bias != nullptr) {
            const double k = modulation * weight;
            args.grad_pre_bias[at] = float(rstd * (k * dv - double(pixels) * mean - mean_x * work.total_x[c]));
        }
        const double offset =
            (pre_bias_of(forward, sample, c) - double(forward.mean[sample * forward.groups + group])) * rstd;
        work.q[c] = float(-rstd * mean_x * rstd);
        work.r[c] = float(-rstd * (mean + mean_x * offset));
    }
}

template <bool kSilu, class T, class G>
void write_chunk(const GroupNormSiluGradArgs& args, int64_t sample, const Gradients<G>& gradients, int64_t chunk,
                 const Workspace& work) {
    const GroupNormSiluArgs& forward = args.forward;
    const int64_t channels = all_channels(forward), image = forward.height * forward.width;
    const Range pixels = chunk_range(image, chunk);
    const float factor = forward.addend != nullptr ? forward.sum_scale : 1.0f;
    int64_t first = 0;
    for (int source = 0; source < 2; first += forward.channels[source++]) {
        const int64_t own = forward.channels[source];
        if (own == 0 || args.grad_source[source] == nullptr) continue;
        const Input<T> input = input_of<T>(forward, sample, source);
        T* to = static_cast<T*>(args.grad_source[source]) + sample * image * own;
        const T* grad_sum = source == 0 ? static_cast<const T*>(args.grad_sum) : nullptr;
        for (int64_t pixel = pixels.begin; pixel < pixels.end; ++pixel) {
            const int64_t at = pixel * channels + first;
            for_vectors(own, [&](int64_t c, int count) __attribute__((always_inline)) {
                const Vec x = input(pixel, c, count), a = load(work.a + first + c);
                const Vec dv = gradient_of_v<kSilu>(gradients.out + at + c, count, a, x, load(work.b + first + c));
                Vec gradient = fma(a, dv, fma(load(work.q + first + c), x, load(work.r + first + c)));
                if (gradients.plain != nullptr) gradient += load_some(gradients.plain + at + c, count);
                if (grad_sum != nullptr) gradient += load_some(grad_sum + (sample * image + pixel) * own + c, count);
                store_some(to + pixel * own + c, gradient * factor, count);
            });
        }
    }
}

template <bool kSilu, class T, class G, class SlotOf>
void run_samples(const GroupNormSiluGradArgs& args, int64_t first, int64_t last, const Team& team,
                 const SlotOf& slot_of) {
    const GroupNormSiluArgs& forward = args.forward;
    const int64_t image = forward.height * forward.width * all_channels(forward), samples = last - first;
    const int64_t chunks = chunk_count(forward.height * forward.width);
    const auto gradients_of = [&](int64_t sample) -> Gradients<G> {
        if constexpr (std::is_same_v<G, float>) {
            if (forward.resampling.direction != 0) {
                const Workspace work = slot_of(sample);
                return {work.grad_out, args.grad_plain != nullptr ? work.grad_plain : nullptr};
            }
        }
        const G *out = static_cast<const G*>(args.grad_out), *plain = static_cast<const G*>(args.grad_plain);
        return {out + sample * image, plain == nullptr ? nullptr : plain + sample * image};
    };
    for (int64_t sample = first; sample < last; ++sample) {
        fill_coefficients(forward, sample, team.share(all_channels(forward), kLanes), slot_of(sample));
    }
    if (forward.resampling.direction != 0) {
        const int64_t bands =
            band_count(transposed(forward.resampling), resampled_size(forward.resampling, forward.height),
                       resampled_size(forward.resampling, forward.width), forward.height, forward.width);
        const Range own = team.share(samples * bands);
        for (int64_t unit = own.begin; unit < own.end; ++unit) {
            const int64_t sample = first + unit / bands, band = unit % bands;
            const Workspace work = slot_of(sample);
            unsample_band<T>(forward, args.grad_out, sample, band, work.grad_out);
            if (args.grad_plain != nullptr) unsample_band<T>(forward, args.grad_plain, sample, band, work.grad_plain);
        }
    }
    team.barrier();
    const Range own = team.share(samples * chunks);
    for (int64_t unit = own.begin; unit < own.end; ++unit) {
        const int64_t sample = first + unit / chunks;
        sum_chunk<kSilu, T>(forward, sample, gradients_of(sample), unit % chunks, slot_of(sample));
    }
    team.barrier();
    const Range groups = team.share(samples * forward.groups);
    for (int64_t unit = groups.begin; unit < groups.end; ++unit) {
        const int64_t sample = first + unit / forward.groups;
        solve_group(args, sample, unit % forward.groups, slot_of(sample));
    }
    team.barrier();
    if (args.grad_source[0] == nullptr && args.grad_source[1] == nullptr) return;
    for (int64_t unit = own.end - 1; unit >= own.begin; --unit) {
        const int64_t sample = first + unit / chunks;
        write_chunk<kSilu, T>(args, sample, gradients_of(sample), unit % chunks, slot_of(sample));
    }
}

std::size_t slot_bytes(const GroupNormSiluGradArgs& args) {
    Arena arena(nullptr);
    Workspace(args, arena);
    return arena.bytes();
}

Workspace slot(const GroupNormSiluGradArgs& args, void* memory, int64_t index) {
    Arena arena(static_cast<char*>(memory) + std::size_t(index) * slot_bytes(args));
    return Workspace(args, arena);
}

template <bool kSilu, class T, class G>
void run(const GroupNormSiluGradArgs& args, void* memory, const Team& team) {
    for_samples(args.forward.samples, team, [&](int64_t first, int64_t last, const Team& part) {
        // A sample that a thread does alone goes to the slot of its rank. Those done together are fewer than threads,
        // and take the first slots when the others are through with theirs.
        const bool together = part.size > 1;
        if (together) part.barrier();
        run_samples<kSilu, T, G>(args, first, last, part, [&](int64_t sample) {
            return slot(args, memory, together ? sample - first : team.rank);
        });
    });
}

template <class T>
void run(const GroupNormSiluGradArgs& args, void* memory, const Team& team) {
    const bool resampled = args.forward.resampling.direction != 0;
    if (args.forward.silu) {
        resampled ? run<true, T, float>(args, memory, team) : run<true, T, T>(args, memory, team);
    } else {
        resampled ? run<false, T, float>(args, memory, team) : run<false, T, T>(args, memory, team);
    }
}

}  // namespace

void group_norm_silu_grad(const GroupNormSiluGradArgs& args, int threads) {
    const GroupNormSiluArgs& forward = args.forward;
    const int64_t elements = forward.samples * forward.height * forward.width * all_channels(forward);
    const int useful = useful_threads(elements, threads);
    const int64_t slots = forward.samples < useful ? forward.samples : useful;
    void* memory = scratch(slot_bytes(args) * std::size_t(slots));
    run_team(useful, [&](const Team& team) {
        with_storage(forward.dtype, [&](auto zero) { run<decltype(zero)>(args, memory, team); });
    });
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
