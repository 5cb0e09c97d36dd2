// group_norm_silu: GroupNorm with everything that surrounds it in EDM's U-Nets, in one pass over the images.
//
// Images are channels-last, [N, H, W, C]. The input x has C = C0 + C1 channels: source 0, and after it source 1, which
// may be absent (C1 = 0); the concatenation itself is never stored. For sample n, channel c in group g:
//
//   x    = (source + addend) · sum_scale                      the addend only with one source; x is written to `sum`
//   h    = x + pre_bias[n, c]
//   u    = (h - mean[n, g]) / sqrt(variance[n, g] + eps) · weight[c] + bias[c]
//   v    = u · (1 + scale[n, c]) + shift[n, c]
//   y    = v / (1 + e^-v)                                     if silu, else v
//   out  = resampled(y);   plain = resampled(x)
//
// mean and variance (biased) are taken over the pixels and the C / groups channels of a group, which may straddle the
// sources. Resampling is `resample`'s, or none: then H' = H, W' = W and `plain` is the concatenation.
#pragma once

#include <cstdint>

#include "edm_fast/dtypes.h"
#include "edm_fast/resample.h"

namespace edm_fast {

struct GroupNormSiluArgs {
    int64_t samples, height, width;
    int64_t channels[2];       // C0 and C1; C1 may be 0
    int64_t groups;            // divides C0 + C1
    DType dtype;               // of source, addend, sum, out and plain: float32, float16 or bfloat16
    const void* source[2];     // [N, H, W, C0], [N, H, W, C1] or nullptr
    int64_t source_stride[2];  // elements from a pixel to the next, >= its channels; rows and samples follow densely
    const void* addend;        // [N, H, W, C0] dense, or nullptr; only if C1 = 0
    float sum_scale;           // read only with an addend
    void* sum;                 // [N, H, W, C0], dense: x, written; with an addend
    // [N, chunks, Ci, 2]: each channel's mean and biased variance over each chunk of source i's pixels; nullptr: taken
    // here. Not with an addend; both sources have them or none.
    const float* moments[2];
    int64_t moments_chunk;      // pixels of a chunk; on the CPU all, as `residual` writes them
    const float* pre_bias;      // [N, C], or nullptr
    int64_t pre_bias_stride;    // elements from a sample to the next; 0: one row for all
    const float* weight;        // [C]
    const float* bias;          // [C]
    const float* scale;         // [N, C], or nullptr; with shift
    const float* shift;         // [N, C]
    int64_t modulation_stride;  // of scale and shift, as pre_bias_stride
    float eps;
    bool silu;
    Resampling resampling;  // of y, and of x for plain
    void* out;              // [N, H', W', C]
    void* plain;            // [N, H', W', C], or nullptr
    float* mean;            // [N, groups], of h, written if not nullptr; the backward needs both
    float* rstd;            // [N, groups]: 1 / sqrt(variance + eps)
};

// The gradients of sum(out · grad_out) + sum(plain · grad_plain) + sum(sum · grad_sum). The forward's arguments, with
// `out`, `plain`, `sum` unused and mean and rstd read. A gradient whose pointer is nullptr is not computed.
struct GroupNormSiluGradArgs {
    GroupNormSiluArgs forward;
    const void* grad_out;    // [N, H', W', C], dtype
    const void* grad_plain;  // [N, H', W', C], dtype, or nullptr
    const void* grad_sum;    // [N, H, W, C0], dtype, or nullptr
    void* grad_source[2];    // [N, H, W, Ci] dense, dtype; with an addend grad_source[0] is the addend's gradient too
    float* grad_pre_bias;    // [N, C] dense
    float* grad_weight;      // [N, C]: a row per sample, which the caller sums
    float* grad_bias;        // [N, C]: likewise
    float* grad_scale;       // [N, C] dense
    float* grad_shift;       // [N, C] dense
};

namespace cpu {
void group_norm_silu(const GroupNormSiluArgs& args, int threads);
void group_norm_silu_grad(const GroupNormSiluGradArgs& args, int threads);
}  // namespace cpu
namespace cuda {
void group_norm_silu(const GroupNormSiluArgs& args, int device, void* stream);
void group_norm_silu_grad(const GroupNormSiluGradArgs& args, int device, void* stream);
}  // namespace cuda

}  // namespace edm_fast
