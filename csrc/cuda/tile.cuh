// How blocks walk over channels-last images: a block owns some packs of channels (see packed.cuh) of one sample, and
// some or all of its pixels. Thread t has pack t % columns and pixels t / columns, + rows, + 2 rows, …, so a warp reads
// `columns` consecutive packs of 32 / columns pixels.
#pragma once

#include <cstdint>

#include "launch.cuh"
#include "packed.cuh"
#include "simt.h"

namespace edm_fast::cuda {

constexpr int kLanes = 32;
// 128 bytes: a line of the cache.
constexpr int kLinePacks = 8;

// The next power of two: lanes of a warp that have the same column are then one shuffle apart.
constexpr int column_count(int64_t packs, int limit = kLanes) {
    int columns = 1;
    while (columns < packs && columns < limit) columns *= 2;
    return columns;
}

// One block's part of the work: channels [first_channel, first_channel + channels) and pixels [first_pixel, end_pixel).
struct Tile {
    int64_t sample, first_channel, first_pixel, end_pixel;
    int channels;
};

// The division of all images into tiles. Tiles are numbered, chunks of pixels first, then channels, then samples.
struct Tiling {
    int64_t samples, channels, pixels;
    int64_t chunk_pixels;
    int64_t chunks;
    int64_t slabs;
    int slab_channels;
    int columns;  // threads side by side over the channels of a slab: a power of two, but for Place(tile, columns)
    int64_t tiles;
};

inline Tiling make_tiling(int64_t samples, int64_t channels, int64_t pixels, int slab_channels, int columns,
                          int64_t chunk_pixels) {
    Tiling tiling{};
    tiling.samples = samples;
    tiling.channels = channels;
    tiling.pixels = pixels;
    tiling.chunk_pixels = chunk_pixels;
    tiling.chunks = ceil_div(pixels, chunk_pixels);
    tiling.slabs = ceil_div(channels, slab_channels);
    tiling.slab_channels = slab_channels;
    tiling.columns = columns;
    tiling.tiles = samples * tiling.slabs * tiling.chunks;
    return tiling;
}

// Slabs of at most `packs` packs, whatever the channels mean.
template <class T>
Tiling line_tiling(int64_t samples, int64_t channels, int64_t pixels, int64_t chunk_pixels, int packs = kLinePacks) {
    const int columns = column_count(ceil_div(channels, kPack<T>), packs);
    return make_tiling(samples, channels, pixels, columns * kPack<T>, columns, chunk_pixels);
}

__device__ __forceinline__ int64_t quotient(int64_t dividend, int64_t divisor) {
    // A 32-bit division is several times cheaper.
    if (uint64_t(dividend | divisor) <= 0xFFFFFFFFu) return uint32_t(dividend) / uint32_t(divisor);
    return dividend / divisor;
}

// Of numbers up to kLanes, without a division: half a unit keeps the quotient off whole numbers by more than it errs.
__device__ __forceinline__ int quotient_of_lanes(int dividend, int divisor) {
    return int(__fdividef(float(dividend) + 0.5f, float(divisor)));
}

__device__ __forceinline__ Tile tile_at(const Tiling& tiling, int64_t index) {
    const int64_t row = quotient(index, tiling.chunks);
    Tile tile;
    tile.sample = quotient(row, tiling.slabs);
    tile.first_channel = (row - tile.sample * tiling.slabs) * tiling.slab_channels;
    tile.first_pixel = (index - row * tiling.chunks) * tiling.chunk_pixels;
    tile.end_pixel = min(tile.first_pixel + tiling.chunk_pixels, tiling.pixels);
    tile.channels = int(min(int64_t(tiling.slab_channels), tiling.channels - tile.first_channel));
    return tile;
}

// Where a thread stands in its block's tile.
template <class T>
struct Place {
    int column, row, rows;
    int offset;        // of the thread's first channel in the slab
    int count;         // of its channels; 0 or less: the thread has none
    int warp_row = 0;  // in its warp; known for Place(tile, columns) alone

    __device__ __forceinline__ Place(const Tiling& tiling, const Tile& tile)
        : Place(tiling.columns, int(blockDim.x), tile) {}
    // Of any number of columns up to kLanes. A warp has as many whole rows as it has lanes for; other lanes have none.
    __device__ __forceinline__ Place(const Tile& tile, int columns) {
        const int lane = int(threadIdx.x) % kLanes, warp_rows = quotient_of_lanes(kLanes, columns);
        warp_row = quotient_of_lanes(lane, columns);
        column = lane - warp_row * columns;
        row = int(threadIdx.x) / kLanes * warp_rows + warp_row;
        rows = int(blockDim.x) / kLanes * warp_rows;
        offset = column * kPack<T>;
        count = warp_row < warp_rows ? min(kPack<T>, tile.channels - offset) : 0;
    }
    // Without divisions, if both are known at compile time.
    __device__ __forceinline__ Place(int columns, int threads, const Tile& tile) {
        column = int(threadIdx.x) & (columns - 1);
        row = int(threadIdx.x) / columns;
        rows = threads / columns;
        offset = column * kPack<T>;
        count = min(kPack<T>, tile.channels - offset);
    }
};

}  // namespace edm_fast::cuda
