// conv2d_split: 3x3 and 1x1 convolutions of stride 1 for few images on tensor cores, with what follows them in a
// residual branch:
//
//   out[n, i, j, o] = (sum_{a,b,c} weight[o, a, b, c] · x[n, i + a - p, j + b - p, c] + bias[o]
//                      + residual[n, i, j, o]) · scale
//
// for channels-last images. Factors are the 16-bit x and weight, all sums are in float32. A tile is 64 pixels and 64
// channels of one sample's output; where tiles are too few to keep a GPU busy, the sum over taps and channels of x is
// split, and the last block of a tile to arrive joins the parts in their order. The split is that of one sample, so
// that an output does not depend on the batch.
#pragma once

#include <cstdint>

#include "edm_fast/dtypes.h"

namespace edm_fast {

// Pixels and output channels of a tile, and channels of x that a step multiplies.
inline constexpr int64_t kSplitTile = 64;

// Counted in 31 bits, with a tile more: (H + 2p + 64) · (W + 2p) · I and (O + 64) · kernel² · I. O is at most 65535
// tiles.
struct Conv2dSplitArgs {
    int64_t samples, height, width;  // of x
    int64_t in_channels;             // a multiple of 8
    int64_t out_channels;
    int32_t kernel;        // 1 or 3
    int32_t padding;       // p; H' = H + 2p - kernel + 1
    DType dtype;           // float16 or bfloat16, of x, weight, residual and out
    const void* x;         // [N, H, W, I] dense, aligned to 16 bytes
    const void* weight;    // [O, kernel, kernel, I] dense, aligned to 16 bytes
    const float* bias;     // [O], or nullptr
    const void* residual;  // [N, H', W', O] dense, or nullptr; may be out
    float scale;
    void* out;          // [N, H', W', O] dense
    float* moments;     // [N, ceil(H' W' / 64), O, 2]: mean and biased variance over each 64 pixels of what was written
    float* partial;     // conv2d_split_partial(…) floats, aligned to 16 bytes; unused if there is one part
    uint32_t* arrived;  // conv2d_split_tiles(…) zeros, which are zeros again in the end; likewise
};

constexpr int64_t conv2d_split_ceil(int64_t dividend, int64_t divisor) {
    return (dividend + divisor - 1) / divisor;
}

// Of one sample with so many output pixels.
constexpr int64_t conv2d_split_tiles(int64_t pixels, int64_t out_channels) {
    return conv2d_split_ceil(pixels, kSplitTile) * conv2d_split_ceil(out_channels, kSplitTile);
}

// Steps of 64 channels of x that a tile's sum takes.
constexpr int64_t conv2d_split_steps(int64_t in_channels, int32_t kernel) {
    return kernel * kernel * conv2d_split_ceil(in_channels, kSplitTile);
}

// Into how many parts a tile's sum goes: as many as give a large GPU about two blocks for each multiprocessor, which
// Hopper's can hold, but no more than pays. Predicted, not measured: a step takes 0.2 µs and joining one more part 0.15
// µs, the sum of which is least at √(4/3 steps) parts.
constexpr int64_t conv2d_split_parts(int64_t pixels, int64_t in_channels, int64_t out_channels, int32_t kernel) {
    constexpr int64_t blocks = 256;
    const int64_t wanted = blocks / conv2d_split_tiles(pixels, out_channels);
    const int64_t steps = conv2d_split_steps(in_channels, kernel);
    int64_t parts = 1;
    while (parts < wanted && 3 * (parts + 1) * (parts + 1) <= 4 * steps) ++parts;
    return parts;
}

// Floats for the parts of all tiles.
constexpr int64_t conv2d_split_partial(int64_t samples, int64_t pixels, int64_t in_channels, int64_t out_channels,
                                       int32_t kernel) {
    const int64_t parts = conv2d_split_parts(pixels, in_channels, out_channels, kernel);
    const int64_t tiles = samples * conv2d_split_tiles(pixels, out_channels);
    return parts > 1 ? tiles * parts * kSplitTile * kSplitTile : 0;
}

namespace cuda {
void conv2d_split(const Conv2dSplitArgs& args, int device, void* stream);
}

}  // namespace edm_fast
