// What the forward and the backward of group_norm_silu share: its input as vectors, and the two coefficients per
// channel that v = a · x + b comes down to.
#pragma once

#include <cstdint>

#include "batch.h"
#include "edm_fast/group_norm_silu.h"
#include "sigmoid.h"
#include "simd.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

static inline int64_t all_channels(const GroupNormSiluArgs& args) {
    return args.channels[0] + args.channels[1];
}

// Element c of sample n's row, or the value that stands for an absent tensor.
static inline float row_value(const float* rows, int64_t stride, int64_t sample, int64_t channel, float absent) {
    return rows == nullptr ? absent : rows[sample * stride + channel];
}

static inline double pre_bias_of(const GroupNormSiluArgs& args, int64_t sample, int64_t channel) {
    return double(row_value(args.pre_bias, args.pre_bias_stride, sample, channel, 0.0f));
}

// 1 + scale.
static inline double modulation_of(const GroupNormSiluArgs& args, int64_t sample, int64_t channel) {
    return 1.0 + double(row_value(args.scale, args.modulation_stride, sample, channel, 0.0f));
}

// a and b of one channel, given its group's mean and 1 / sqrt(variance + eps), for the backward; the forward has the
// same for many channels.
static inline void affine_of(const GroupNormSiluArgs& args, int64_t sample, int64_t channel, double mean, double rstd,
                             float* a, float* b) {
    const double modulation = modulation_of(args, sample, channel);
    const double slope = rstd * double(args.weight[channel]) * modulation;
    const double shift = double(row_value(args.shift, args.modulation_stride, sample, channel, 0.0f));
    *a = float(slope);
    *b = float((pre_bias_of(args, sample, channel) - mean) * slope + double(args.bias[channel]) * modulation + shift);
}

// x of one source of one sample.
template <class T>
struct Input {
    const T* source;
    int64_t stride;
    const T* addend;  // dense, or nullptr
    float sum_scale;
    int64_t channels;

    inline __attribute__((always_inline)) Vec operator()(int64_t pixel, int64_t channel, int count) const {
        const Vec value = load_some(source + pixel * stride + channel, count);
        if (addend == nullptr) return value;
        return rounded<T>((value + load_some(addend + pixel * channels + channel, count)) * sum_scale);
    }
};

template <class T>
static Input<T> input_of(const GroupNormSiluArgs& args, int64_t sample, int source) {
    const int64_t pixels = args.height * args.width;
    const T* addend = static_cast<const T*>(args.addend);
    return {static_cast<const T*>(args.source[source]) + sample * pixels * args.source_stride[source],
            args.source_stride[source], addend == nullptr ? nullptr : addend + sample * pixels * args.channels[0],
            args.sum_scale, args.channels[source]};
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
