// The parts of conv2d_split's kernel: how a tile's factors come into shared memory, and how a warp multiplies them.
#pragma once

#include <cstdint>

#include "async_copy.cuh"
#include "edm_fast/conv2d_split.h"
#include "packed.cuh"
#include "simt.h"
#include "tensor_core.cuh"
#include "tile.cuh"

namespace edm_fast::cuda {

constexpr int kSplitThreads = 128;
// Of pixels, of output channels and of input channels alike.
constexpr int kSplitSide = int(kSplitTile);
// Sixteen bytes each, of a row of 64 elements.
constexpr int kSplitPacks = kSplitSide / 8;
constexpr int kSplitStagePacks = 2 * kSplitSide * kSplitPacks;
// A block is alone on its multiprocessor when images are few: five steps under way are what memory takes to answer.
constexpr int kSplitStages = 6;
constexpr int kSplitRowsPerThread = kSplitSide * kSplitPacks / kSplitThreads;

struct SplitPlan {
    Tiling tiling;  // of the output
    int out_width;
    int parts, steps;
    int channel_steps;  // of a tap
};

// Rows of 128 bytes, whose packs are so permuted that eight rows' packs of the same number lie in different banks.
__device__ __forceinline__ int split_place(int row, int pack) {
    return row * kSplitPacks + (pack ^ (row & 7));
}

// Which of the taps of a pixel lie inside of the image, bit 3 a + b for tap (a, b), if its first tap is at (y, x).
__device__ __forceinline__ uint32_t taps_inside(int y, int x, int height, int width) {
    const auto inside = [](int place, int extent) { return uint32_t(unsigned(place) < unsigned(extent)); };
    const uint32_t columns = inside(x, width) | inside(x + 1, width) << 1 | inside(x + 2, width) << 2;
    return (inside(y, height) | inside(y + 1, height) << 3 | inside(y + 2, height) << 6) * columns;
}

// A thread's share of the copies: one pack of four pixels and of four output channels, every sixteenth row.
template <class T>
class SplitLoader {
    static constexpr int kRows = kSplitThreads / kSplitPacks;

  public:
    __device__ __forceinline__ SplitLoader(const Conv2dSplitArgs& args, const SplitPlan& plan, const Tile& tile,
                                           int first_step)
        : kernel_(args.kernel),
          channels_(int(args.in_channels)),
          channel_steps_(plan.channel_steps),
          row_stride_(int((args.width - args.kernel + 1) * args.in_channels)) {
        const int row = int(threadIdx.x) / kSplitPacks, pack = int(threadIdx.x) % kSplitPacks;
        place_ = split_place(row, pack);
        x_ = static_cast<const T*>(args.x) + tile.sample * args.height * args.width * args.in_channels;
        weight_ = static_cast<const T*>(args.weight);
        const int height = int(args.height), width = int(args.width);
        const int taps = kernel_ * kernel_ * channels_;
#pragma unroll
        for (int i = 0; i < kSplitRowsPerThread; ++i) {
            const int in_tile = row + i * kRows;
            const unsigned pixel = unsigned(tile.first_pixel) + unsigned(in_tile);
            const int line = int(pixel / unsigned(plan.out_width));
            const int y = line - args.padding, x = int(pixel) - line * plan.out_width - args.padding;
            pixels_[i] = (y * width + x) * channels_ + pack * kPack<T>;
            taps_[i] = pixel < unsigned(tile.end_pixel) ? taps_inside(y, x, height, width) : 0;
            weights_[i] = (int(tile.first_channel) + in_tile) * taps + pack * kPack<T>;
        }
        // How many of the thread's rows have an output channel.
        weight_rows_ = (tile.channels - row + kRows - 1) / kRows;
        tap_ = first_step / channel_steps_;
        tap_column_ = kernel_ == 1 ? 0 : tap_ % 3;
        tap_offset_ = ((kernel_ == 1 ? 0 : tap_ / 3) * width + tap_column_) * channels_;
        channel_ = (first_step - tap_ * channel_steps_) * kSplitSide;
        first_channel_ = pack * kPack<T>;
    }

    // Starts the copies of a step into a stage, and goes to the next.
    __device__ __forceinline__ void load(uint4* stage) {
        const bool has_channels = channel_ + first_channel_ < channels_;
        const int of_x = tap_offset_ + channel_, of_weight = tap_ * channels_ + channel_;
        uint4* const here = stage + place_;
#pragma unroll
        for (int i = 0; i < kSplitRowsPerThread; ++i) {
            const bool has_pixel = has_channels && (taps_[i] >> tap_ & 1u) != 0;
            copy_async_or_zero(here + i * kRows * kSplitPacks, x_ + (has_pixel ? unsigned(pixels_[i] + of_x) : 0u),
                               has_pixel);
            const bool has_weight = has_channels && i < weight_rows_;
            copy_async_or_zero(here + (kSplitSide + i * kRows) * kSplitPacks,
                               weight_ + (has_weight ? unsigned(weights_[i] + of_weight) : 0u), has_weight);
        }
        channel_ += kSplitSide;
        if (channel_ < channel_steps_ * kSplitSide) return;
        channel_ = 0;
        ++tap_;
        ++tap_column_;
        tap_offset_ += tap_column_ == kernel_ ? row_stride_ : channels_;
        if (tap_column_ == kernel_) tap_column_ = 0;
    }

  private:
    const T *x_, *weight_;  // of the sample; of all
    int kernel_, channels_, channel_steps_;
    int row_stride_;  // from the last tap of a row to the first of the next
    int place_, first_channel_, weight_rows_;
    // Elements to the first tap of a pixel, which may lie before the image, and of an output channel; and which taps
    // lie inside of the image.
    int pixels_[kSplitRowsPerThread], weights_[kSplitRowsPerThread];
    uint32_t taps_[kSplitRowsPerThread];
    // The next step.
    int tap_, tap_column_, channel_;
    int tap_offset_;
};

// A warp's quarter of the tile, 32 pixels by 32 channels, as the tensor cores leave it: four values for each of 2 x 4
// products.
struct SplitSums {
    float values[2][4][4] = {};

    __device__ __forceinline__ static int first_row() { return int(threadIdx.x) / kLanes % 2 * (kSplitSide / 2); }
    __device__ __forceinline__ static int first_column() { return int(threadIdx.x) / kLanes / 2 * (kSplitSide / 2); }

    // Adds a stage's products.
    template <class T>
    __device__ __forceinline__ void add(const uint4* stage) {
        const int lane = int(threadIdx.x) % kLanes;
        // Packs k and k + 1, k even, of a row lie at split_place; all rows here have number lane % 8 among eight.
        const uint4* const of_pixels = stage + (first_row() + lane % 16) * kSplitPacks + ((lane / 16) ^ (lane & 1));
        const uint4* const of_channels = stage +
                                         (kSplitSide + first_column() + lane % 8 + lane / 16 * 8) * kSplitPacks +
                                         ((lane / 8 % 2) ^ (lane & 1));
#pragma unroll
        for (int k = 0; k < kSplitPacks; k += 2) {
            const int pair = k ^ (lane & 6);
            uint32_t pixels[2][4], channels[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                load_matrices(pixels[i], of_pixels + pair + 16 * i * kSplitPacks);
                load_matrices(channels[i], of_channels + pair + 16 * i * kSplitPacks);
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const uint32_t b[2] = {channels[j / 2][j % 2 * 2], channels[j / 2][j % 2 * 2 + 1]};
                    multiply_add<T>(values[i][j], pixels[i], b);
                }
            }
        }
    }

    // To rows of `stride` floats, a pixel's channels side by side.
    __device__ __forceinline__ void store(float* rows, int stride) const {
        const int lane = int(threadIdx.x) % kLanes;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float* const here =
                    rows + (first_row() + 16 * i + lane / 4) * stride + first_column() + 8 * j + lane % 4 * 2;
                *reinterpret_cast<float2*>(here) = make_float2(values[i][j][0], values[i][j][1]);
                *reinterpret_cast<float2*>(here + 8 * stride) = make_float2(values[i][j][2], values[i][j][3]);
            }
        }
    }
};

}  // namespace edm_fast::cuda
