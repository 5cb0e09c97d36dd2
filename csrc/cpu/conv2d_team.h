// conv2d for a team of threads, and what its algorithms share.
#pragma once

#include <cstddef>

#include "edm_fast/conv2d.h"
#include "gemm.h"
#include "simd.h"
#include "team.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

// Bytes of working memory for a team of `threads`; does not grow with the number of samples.
std::size_t conv2d_scratch(const Conv2dArgs& args, int threads);

// `scratch` is the whole team's, aligned to 64 bytes. The team meets inside, but not at the end.
void conv2d(const Conv2dArgs& args, void* scratch, const Team& team);

std::size_t direct_scratch(const Conv2dArgs& args, int threads);
void direct_conv2d(const Conv2dArgs& args, void* scratch, const Team& team);
std::size_t tiles_scratch(const Conv2dArgs& args, int threads);
void tiles_conv2d(const Conv2dArgs& args, void* scratch, const Team& team);
std::size_t winograd_scratch(const Conv2dArgs& args, int threads);
void winograd_conv2d(const Conv2dArgs& args, void* scratch, const Team& team);

static inline int64_t output_height(const Conv2dArgs& args) {
    return args.height + 2 * args.padding - args.kernel + 1;
}

static inline int64_t output_width(const Conv2dArgs& args) {
    return args.width + 2 * args.padding - args.kernel + 1;
}

// What is added to every pixel of a sample: bias + channel_bias, `count` lanes from channel c.
EDM_FAST_INLINE Vec constant_term(const Conv2dArgs& args, int64_t sample, int64_t c, int count) {
    Vec sum = {};
    if (args.bias != nullptr) sum = load_some(args.bias + c, count);
    if (args.channel_bias != nullptr) {
        sum += load_some(args.channel_bias + sample * args.channel_bias_stride + c, count);
    }
    return sum;
}

// Finishes `count` lanes of one output pixel from channel c on.
template <class T>
EDM_FAST_INLINE void write_pixel(const Conv2dArgs& args, int64_t sample, int64_t y, int64_t x, int64_t height,
                                 int64_t width, int64_t c, int count, Vec value, Vec constant) {
    value += constant;
    if (args.residual != nullptr) {
        const int shift = args.residual_shift;
        const int64_t row = (sample * (height >> shift) + (y >> shift)) * (width >> shift) + (x >> shift);
        value += load_some(static_cast<const T*>(args.residual) + row * args.out_channels + c, count);
    }
    T* out = static_cast<T*>(args.out) + ((sample * height + y) * width + x) * args.out_channels + c;
    store_some(out, value * splat(args.scale), count);
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
