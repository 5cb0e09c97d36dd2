// resample: 2x up or down resampling of channels-last images with a separable FIR filter of k taps, k even, f
// symmetric.
//
// With the taps normalised to sum 1 and p pixels of zero padding:
//
//   down: out[i, j] = sum_ab f[a] f[b] · x[2i + a - p, 2j + b - p]                       H' = (H + 2p - k) / 2 + 1
//   up:   out[i, j] = sum_ab 2f[a] · 2f[b] · x[(i + p - a) / 2, (j + p - b) / 2]         H' = 2H - 2 + k - 2p
//
// where in `up` only terms with whole indices count, and pixels outside the image are 0. With p = (k - 2) / 2 the size
// is halved or doubled exactly; [1, 1] is the mean of 2x2 pixels and their repetition. The gradient of down is up with
// the taps scaled by 1/2 (f/2 · f/2 · 4 = 1), that of up is down with the taps scaled by 2.
#pragma once

#include <cstdint>

#include "edm_fast/dtypes.h"

namespace edm_fast {

constexpr int kMaxTaps = 8;

struct Resampling {
    int direction;        // 1: up, -1: down, 0: none
    int taps;             // k
    int padding;          // p
    float tap[kMaxTaps];  // f
};

struct ResampleArgs {
    int64_t samples, height, width, channels;  // of x
    DType dtype;                               // float32, float16 or bfloat16, of x and out
    Resampling resampling;                     // direction is not 0
    const void* x;                             // [N, H, W, C] dense
    void* out;                                 // [N, H', W', C] dense
};

namespace cpu {
void resample(const ResampleArgs& args, int threads);
}
namespace cuda {
void resample(const ResampleArgs& args, int device, void* stream);
}

}  // namespace edm_fast
