// Tiles of a batch of images, and how they are transformed for Winograd's products.
#pragma once

#include <algorithm>
#include <cstdint>

#include "gemm.h"
#include "team.h"
#include "winograd.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

constexpr int64_t kPadding = 16;  // floats between planes, so that they do not fall on the same cache sets

// Output pixels of a tile.
struct Form {
    int height, width;
};

// The tiles of an image of height x width outputs.
struct TileGrid {
    int64_t height, width, rows, columns;

    TileGrid() = default;
    TileGrid(int64_t height, int64_t width, const Form& form)
        : height(height),
          width(width),
          rows((height + form.height - 1) / form.height),
          columns((width + form.width - 1) / form.width) {}

    int64_t per_image() const { return rows * columns; }
};

struct Tile {
    int64_t sample, y, x;  // of the first output pixel
};

// Goes through the tiles of the batch one by one, from tile `index` on, without a division for each.
template <int kHeight, int kWidth>
class TileWalk {
  public:
    TileWalk(const TileGrid& grid, int64_t index) : height_(grid.height), width_(grid.width) {
        const int64_t in_image = index % grid.per_image();
        tile = {index / grid.per_image(), in_image / grid.columns * kHeight, in_image % grid.columns * kWidth};
    }

    void next() {
        tile.x += kWidth;
        if (tile.x < width_) return;
        tile.x = 0;
        tile.y += kHeight;
        if (tile.y < height_) return;
        tile.y = 0;
        ++tile.sample;
    }

    Tile tile;

  private:
    int64_t height_, width_;
};

// Bᵀ d B of the (kHeight + 2) x (kWidth + 2) pixels under a tile.
template <int kHeight, int kWidth>
struct InputTransform {
    static constexpr int kTileHeight = kHeight, kTileWidth = kWidth, kRows = kHeight + 2, kColumns = kWidth + 2;

    static inline __attribute__((always_inline)) void apply(Vec* d) {
#pragma GCC unroll 6
        for (int j = 0; j < kColumns; ++j) Winograd<kHeight>::input(d + j, kColumns);
#pragma GCC unroll 6
        for (int i = 0; i < kRows; ++i) Winograd<kWidth>::input(d + i * kColumns, 1);
    }
};

// A d Aᵀ of the gradients of a tile's kHeight x kWidth outputs.
template <int kHeight, int kWidth>
struct GradientTransform {
    static constexpr int kTileHeight = kHeight, kTileWidth = kWidth, kRows = kHeight, kColumns = kWidth;

    static inline __attribute__((always_inline)) void apply(Vec* d) {
#pragma GCC unroll 6
        for (int j = 0; j < kWidth; ++j) Winograd<kHeight>::gradient(d + j, kWidth + 2);
#pragma GCC unroll 6
        for (int i = 0; i < kHeight + 2; ++i) Winograd<kWidth>::gradient(d + i * (kWidth + 2), 1);
    }
};

template <class T>
struct TileSource {
    const T* image;         // [N, height, width] pixels of `stride` values, of which the first `channels` are taken
    int64_t height, width;  // pixels beyond are 0
    int64_t channels, stride;
    int64_t padding;  // how far above and left of a tile its first pixel lies
    const T* zeros;   // as many as channels, rounded up to whole vectors
};

// Tiles [first, first + count) become to[e * plane + tile * depth + channel] for each product e. Factors beyond the
// channels are written, as 0, as far as `depth` goes, up to a whole vector. The team shares the tiles.
template <class Transform, class Product, class T>
static void transform_tiles(const TileSource<T>& source, const TileGrid& grid, int64_t first, int64_t count, float* to,
                            int64_t depth, int64_t plane, const Team& team) {
    constexpr int kRows = Transform::kRows, kColumns = Transform::kColumns;
    constexpr int kWide = Transform::kTileWidth + 2, kProducts = (Transform::kTileHeight + 2) * kWide;
    constexpr int64_t kChannelBlock = 4 * kLanes;
    using Factor = typename Product::Factor;
    const int64_t channels = source.channels, factors = depth * Product::kPerFloat;
    // Few tiles are shared out by channels too.
    const int64_t block = count >= 4 * team.size ? channels : kChannelBlock;
    const int64_t blocks = (channels + block - 1) / block;
    const Range range = team.share(count * blocks);
    int64_t p = range.begin / blocks, part = range.begin % blocks;
    TileWalk<Transform::kTileHeight, Transform::kTileWidth> walk(grid, first + p);
    for (int64_t index = range.begin; index < range.end; ++index) {
        const Tile& tile = walk.tile;
        const int64_t begin = part * block, end = std::min(begin + block, channels);
        const int64_t top = tile.y - source.padding, left = tile.x - source.padding;
        const int64_t corner = ((tile.sample * source.height + top) * source.width + left) * source.stride;
        const T* pixel[kRows * kColumns];
#pragma GCC unroll 6
        for (int i = 0; i < kRows; ++i) {
            const bool row_inside = uint64_t(top + i) < uint64_t(source.height);
#pragma GCC unroll 6
            for (int j = 0; j < kColumns; ++j) {
                const bool inside = row_inside && uint64_t(left + j) < uint64_t(source.width);
                const int64_t offset = corner + (i * source.width + j) * source.stride;
                pixel[i * kColumns + j] = inside ? source.image + offset : source.zeros;
            }
        }
        float* row = to + p * depth;
        for (int64_t c = begin; c < end; c += kLanes) {
            const int lanes = int(std::min<int64_t>(kLanes, end - c));
            const int stored = int(std::min<int64_t>(kLanes, factors - c));
            Vec d[kProducts];
            if (lanes == kLanes) {
#pragma GCC unroll 6
                for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 6
                    for (int j = 0; j < kColumns; ++j) d[i * kWide + j] = load(pixel[i * kColumns + j] + c);
                }
            } else {
                for (int i = 0; i < kRows; ++i) {
                    for (int j = 0; j < kColumns; ++j) {
                        d[i * kWide + j] = load_some(pixel[i * kColumns + j] + c, lanes);
                    }
                }
            }
            Transform::apply(d);
            if (stored == kLanes) {
#pragma GCC unroll 36
                for (int e = 0; e < kProducts; ++e) {
                    Product::write(reinterpret_cast<Factor*>(row + e * plane) + c, d[e]);
                }
            } else {
                for (int e = 0; e < kProducts; ++e) {
                    store_some(reinterpret_cast<Factor*>(row + e * plane) + c, d[e], stored);
                }
            }
        }
        if (++part == blocks) {
            part = 0;
            ++p;
            walk.next();
        }
    }
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
