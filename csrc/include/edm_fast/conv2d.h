// conv2d: 3x3 and 1x1 convolutions of stride 1 with packed weights, and all that follows them in a residual branch:
//
//   out[n, i, j, o] = (sum_{a,b,c} weight[o, c, a, b] · x[n, i + a - p, j + b - p, c]
//                      + bias[o] + channel_bias[n, o] + residual[n, i >> s, j >> s, o]) · scale
//
// for channels-last images. x may be two sources side by side in channels, of which no concatenation is stored. All
// sums are in float32; with 16-bit storage x, residual and out are converted as they are read and written.
//
// Factors of the products are float32, or, for x in bfloat16 where the processor multiplies pairs of them, bfloat16:
// weights are rounded, and with Winograd's forms the transformed x too.
//
// Algorithms: direct (implicit GEMM), the same by matrix tiles (for bfloat16 factors, if multiplies_tiles() and the
// channels of each source come in 32s), and Winograd's F(2x2, 3x3), F(2x4, 3x3) and F(4x4, 3x3); where 4 outputs lie in
// a row, with points 0, ±√½, ±√2 and infinity. Each output depends on the sample alone, with a fixed order of sums.
#pragma once

#include <cstdint>

#include "edm_fast/dtypes.h"

namespace edm_fast {

enum ConvAlgorithm : int32_t { kDirect = 0, kWinograd2 = 2, kWinograd4 = 4, kWinograd2x4 = 24, kTiles = 16 };

struct Conv2dArgs {
    int64_t samples, height, width;  // of x
    int64_t channels[2];             // of the sources; channels[1] may be 0
    int64_t out_channels;
    int32_t kernel;   // 1 or 3
    int32_t padding;  // p; H' = H + 2p - kernel + 1
    ConvAlgorithm algorithm;
    DType factors;                // float32, or bfloat16 if multiplies_pairs() and all channels of x are even
    DType dtype;                  // float32, float16 or bfloat16, of x, residual and out; bfloat16 if factors are
    const void* source[2];        // [N, H, W, Ci] dense
    const float* weight;          // packed by pack_conv2d for this algorithm and these factors
    const float* bias;            // [O], or nullptr
    const float* channel_bias;    // [N, O], or nullptr
    int64_t channel_bias_stride;  // elements from a sample to the next; 0: one row for all
    const void* residual;         // [N, H' >> s, W' >> s, O], or nullptr; may be out if s = 0
    int32_t residual_shift;       // s: 0, or 1 for a residual that is repeated 2x2
    float scale;
    void* out;  // [N, H', W', O]
};

struct PackConv2dArgs {
    int64_t in_channels, out_channels;
    int32_t kernel;
    ConvAlgorithm algorithm;
    DType factors;        // float32, or bfloat16: a float of `packed` then holds the weights of two channels of x
    bool turned;          // weight is [I, O, kernel, kernel], and its taps are taken from the last to the first
    const float* weight;  // [O, I, kernel, kernel] dense
    float* packed;        // conv2d_packed_size(...) floats, aligned to 64 bytes
};

// The gradient of the 3x3 weights of a conv2d with one source, from that of its output before bias and all else:
//
//   out[o, i, a, b] = sum_{n,y,x} grad[n, y, x, o] · x[n, y + a - p, x + b - p, i]
//
// by Winograd's forms, in float32. The order of the sums depends on the batch, but on nothing else.
struct Conv2dWeightGradArgs {
    int64_t samples, height, width;  // of x
    int64_t in_channels, out_channels;
    int32_t padding;          // p
    ConvAlgorithm algorithm;  // any but kDirect
    DType dtype;              // float32, float16 or bfloat16, of x and grad
    const void* x;            // [N, H, W, I] dense
    const void* grad;         // [N, H + 2p - 2, W + 2p - 2, O] dense
    float* out;               // [O, I, 3, 3] dense
};

namespace cpu {
// Whether this processor, with the instruction set in use, multiplies pairs of bfloat16.
bool multiplies_pairs();
// Whether it multiplies tiles of them, as kTiles needs.
bool multiplies_tiles();
int64_t conv2d_packed_size(int64_t in_channels, int64_t out_channels, int32_t kernel, ConvAlgorithm algorithm,
                           DType factors);
void pack_conv2d(const PackConv2dArgs& args, int threads);
void conv2d(const Conv2dArgs& args, int threads);
void conv2d_weight_grad(const Conv2dWeightGradArgs& args, int threads);
}  // namespace cpu

}  // namespace edm_fast
