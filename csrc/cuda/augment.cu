// augment: a block makes a tile of 16 x 16 pixels of one sample, a thread one pixel, channel after channel. With a warp
// the tile needs 42 x 42 elements of the fine grid v. Bilinear interpolation between elements of u and the filter that
// made these are one sum, separable, over at most 7 x 7 pixels at a position of its own; so u is never made, and the
// only memory is the tile's, in shared memory, where v then goes down along x and along y. The pixels come from the
// caches. Bound by arithmetic: some 200 operations for each element of v.
#include "edm_fast/augment.h"
#include "launch.cuh"
#include "simt.h"
#include "tile.cuh"

namespace edm_fast::cuda {

namespace {

constexpr int kTile = 16;
constexpr int kTileThreads = 256;
static_assert(kTileThreads == kTile * kTile);
constexpr int kFine = 2 * kTile + 2 * kSym6Before;
constexpr int kNeighbours = 7;

// 0, h, 0, 0: so that both elements at a position have a tap of each of its neighbours.
struct Taps {
    float tap[kSym6Taps + 3];
};

struct Shared {
    float tap[kSym6Taps + 3];
    float fine[kFine][kFine];
    float narrow[kFine][kTile];
};

// A position on one axis of u: between element 2m + odd and the next, which are made of pixels m - 3 … m + 3.
struct Position {
    int first, odd;    // m - 3
    float here, next;  // the weights of both elements; 0 for one outside of the grid
    int extent;

    __device__ __forceinline__ Position(float position, int extent_) : extent(extent_) {
        const int low = -2 * (extent - 1), high = 4 * extent - 3;
        // NaN counts as far outside.
        const float inside = fminf(fmaxf(position, float(low - 1)), float(high + 1));
        const int element = int(floorf(inside));
        const float past = inside - float(element);
        here = element >= low && element <= high ? 1.0f - past : 0.0f;
        next = element + 1 >= low && element + 1 <= high ? past : 0.0f;
        first = (element >> 1) - 3;
        odd = element & 1;
    }
    // Of pixel first + i; tap[1 + k] is h[k].
    __device__ __forceinline__ float weight(const float* tap, int i) const {
        if (first + i <= -extent || first + i >= 2 * extent - 1) return 0.0f;
        return here * tap[odd + 12 - 2 * i] + next * tap[odd + 13 - 2 * i];
    }
};

// The value of u at a position, of one channel.
__device__ __forceinline__ float value_at(const float* tap, const float* x, int64_t pixel_stride, const Blit& blit,
                                          const Position& along_x, const Position& along_y) {
    float weight[kNeighbours];
    int64_t column[kNeighbours];
#pragma unroll
    for (int i = 0; i < kNeighbours; ++i) {
        weight[i] = along_x.weight(tap, i);
        column[i] = blit.column_part(reflected(along_x.first + i, blit.width));
    }
    float sum = 0.0f;
#pragma unroll 1
    for (int i = 0; i < kNeighbours; ++i) {
        const int64_t row = blit.row_part(reflected(along_y.first + i, blit.height));
        float line = 0.0f;
#pragma unroll
        for (int j = 0; j < kNeighbours; ++j) line += weight[j] * x[(row + column[j]) * pixel_stride];
        sum += along_y.weight(tap, i) * line;
    }
    return sum;
}

// The warped value of this thread's pixel of the tile; all threads must call it.
__device__ float warped(Shared& shared, const float* x, int64_t pixel_stride, const Blit& blit, const Warp& warp,
                        int tile_row, int tile_column) {
    for (int i = int(threadIdx.x); i < kFine * kFine; i += kTileThreads) {
        const int row = i / kFine, column = i - row * kFine;
        // Twice the position of v's element in the output, from the image's centre.
        const float out_x = float(2 * tile_column + column - kSym6Before + 1 - blit.width);
        const float out_y = float(2 * tile_row + row - kSym6Before + 1 - blit.height);
        float in[2];
#pragma unroll
        for (int axis = 0; axis < 2; ++axis) {
            const float centre = float((axis == 0 ? blit.width : blit.height) - 1);
            const float offset = __fmaf_rn(2.0f, warp.b[axis], centre);
            in[axis] = __fmaf_rn(warp.a[axis][0], out_x, __fmaf_rn(warp.a[axis][1], out_y, offset));
        }
        shared.fine[row][column] =
            value_at(shared.tap, x, pixel_stride, blit, Position(in[0], blit.width), Position(in[1], blit.height));
    }
    __syncthreads();
    for (int i = int(threadIdx.x); i < kFine * kTile; i += kTileThreads) {
        const int row = i / kTile, column = i - row * kTile;
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < kSym6Taps; ++k) sum += shared.tap[1 + k] * shared.fine[row][2 * column + k];
        shared.narrow[row][column] = sum;
    }
    __syncthreads();
    const int row = int(threadIdx.x) / kTile, column = int(threadIdx.x) - row * kTile;
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kSym6Taps; ++k) sum += shared.tap[1 + k] * shared.narrow[2 * row + k][column];
    return sum;
}

__global__ void __launch_bounds__(kTileThreads)
    augment_kernel(const __grid_constant__ AugmentArgs args, const __grid_constant__ Taps taps) {
    Shared& shared = *simt::dynamic_shared<Shared>();
    if (threadIdx.x < kSym6Taps + 3) shared.tap[threadIdx.x] = taps.tap[threadIdx.x];
    __syncthreads();
    const int64_t across = (args.width + kTile - 1) / kTile, tiles = across * ((args.height + kTile - 1) / kTile);
    for (int64_t index = blockIdx.x; index < args.samples * tiles; index += gridDim.x) {
        const int64_t sample = quotient(index, tiles), tile = index - sample * tiles;
        const int tile_row = int(quotient(tile, across)) * kTile;
        const int tile_column = int(tile - quotient(tile, across) * across) * kTile;
        const int row = tile_row + int(threadIdx.x) / kTile, column = tile_column + int(threadIdx.x) % kTile;
        const bool inside = row < args.height && column < args.width;
        const Blit blit(args, sample);
        const Warp warp(args, sample);
        const Colour colour(args, sample);
        const float* const x = static_cast<const float*>(args.images.data) + sample * args.images.sample_stride;
        float* const out = static_cast<float*>(args.out.data) + sample * args.out.sample_stride +
                           (int64_t(row) * args.width + column) * args.out.pixel_stride;
        float mixed[3] = {};
        for (int c = 0; c < int(args.channels); ++c) {
            const float* const plane = x + c * args.images.channel_stride;
            float value = 0.0f;
            if (!warp.identity) {
                value = warped(shared, plane, args.images.pixel_stride, blit, warp, tile_row, tile_column);
            } else if (inside) {
                value = plane[(blit.row_part(row) + blit.column_part(column)) * args.images.pixel_stride];
            }
            if (colour.matrix != nullptr) {
#pragma unroll
                for (int r = 0; r < 3; ++r) mixed[r] += colour.gain(r, c) * value;
            } else if (inside) {
                out[c * args.out.channel_stride] = value;
            }
        }
        if (colour.matrix == nullptr || !inside) continue;
#pragma unroll
        for (int r = 0; r < 3; ++r) {
            if (r < args.channels) out[r * args.out.channel_stride] = mixed[r] + colour.offset(r);
        }
    }
}

}  // namespace

void augment(const AugmentArgs& args, int device, void* stream) {
    const int64_t tiles = ceil_div(args.height, kTile) * ceil_div(args.width, kTile);
    if (args.samples == 0 || args.channels == 0 || tiles == 0) return;
    Taps taps{};
    for (int k = 0; k < kSym6Taps; ++k) taps.tap[1 + k] = kSym6[k];
    DeviceGuard guard(device);
    EDM_FAST_LAUNCH(augment_kernel, dim3(grid_size(args.samples * tiles, 1)), dim3(kTileThreads), sizeof(Shared),
                    stream, args, taps);
}

}  // namespace edm_fast::cuda
