// Small matrix products of float32 in cache: C = A B, or C += A B. A is read one broadcast element at a time, so it may
// be transposed; B is packed in panels. An element of C is a chain of fma over kDepth elements, then the next chain is
// added to it: it depends on its row of A and its column of B alone, never on which rows are computed together.
#pragma once

#include <algorithm>
#include <utility>

#include "simd.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

// The registers hold kTileRows × kTileVectors accumulators, the vectors of B that feed them, and a broadcast.
constexpr int kTileRows = 6;
constexpr int kTileVectors = kLanes == 16 ? 4 : 2;
constexpr int64_t kPanel = kTileVectors * kLanes;
// So that a panel's chunk stays in the first-level cache while the rows of A go past it.
constexpr int64_t kDepth = 128;

EDM_FAST_INLINE int64_t round_up(int64_t count, int64_t unit) {
    return (count + unit - 1) / unit * unit;
}

// B [depth, width] lies as panels of kPanel columns, [panel][depth][columns of the panel]; the last panel has as many
// vectors as its columns need. Element (k, column) is at panel_offset(...) + column % kPanel.
EDM_FAST_INLINE int64_t panel_columns(int64_t width, int64_t panel) {
    return std::min(round_up(width, kLanes) - panel * kPanel, kPanel);
}

EDM_FAST_INLINE int64_t panel_offset(int64_t depth, int64_t width, int64_t panel, int64_t k) {
    return panel * kPanel * depth + k * panel_columns(width, panel);
}

// Floats of B.
EDM_FAST_INLINE int64_t panels_size(int64_t depth, int64_t width) {
    return depth * round_up(width, kLanes);
}

// A [rows, depth] with rows `stride` apart, or, transposed, with the elements of a row `stride` apart.
struct LeftMatrix {
    const float* data;
    int64_t stride;
    bool transposed;
};

template <int kRows, int kVectors, bool kTransposed>
static void multiply_tile(const float* a, int64_t a_stride, const float* b, int64_t depth, float* c, int64_t c_stride,
                          bool accumulate) {
    // All loops but the one over k are unrolled, or GCC keeps the accumulators in memory.
    Vec sum[kRows][kVectors];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[row][v] = Vec{};
    }
    for (int64_t k = 0; k < depth; ++k) {
        Vec right[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) right[v] = load(b + v * kLanes);
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row) {
            const Vec left = splat(kTransposed ? a[row] : a[row * a_stride]);
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sum[row][v] = fma(left, right[v], sum[row][v]);
        }
        a += kTransposed ? a_stride : 1;
        b += kVectors * kLanes;
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
            float* to = c + row * c_stride + v * kLanes;
            store(to, accumulate ? load(to) + sum[row][v] : sum[row][v]);
        }
    }
}

using TileFunction = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t, bool);

template <int... kTiles>
static TileFunction tile_function(int rows, int vectors, bool transposed, std::integer_sequence<int, kTiles...>) {
    static constexpr TileFunction kFunctions[2][sizeof...(kTiles)] = {
        {multiply_tile<kTiles / kTileVectors + 1, kTiles % kTileVectors + 1, false>...},
        {multiply_tile<kTiles / kTileVectors + 1, kTiles % kTileVectors + 1, true>...},
    };
    return kFunctions[transposed][(rows - 1) * kTileVectors + vectors - 1];
}

// Rows [first, …) of a matrix of `depth` rows that lies in panels.
struct RightMatrix {
    const float* data;
    int64_t depth, first = 0;
};

// C [rows, width] = A [rows, depth] B [depth, width], or is added to. C's rows are written up to round_up(width,
// kLanes).
static inline void multiply(int64_t rows, int64_t width, int64_t depth, const LeftMatrix& a, const RightMatrix& b,
                            float* c, int64_t c_stride, bool accumulate = false) {
    constexpr auto kTiles = std::make_integer_sequence<int, kTileRows * kTileVectors>{};
    const int64_t panels = (width + kPanel - 1) / kPanel;
    for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t columns = panel_columns(width, panel);
        for (int64_t k = 0; k < depth; k += kDepth) {
            const float* right = b.data + panel_offset(b.depth, width, panel, b.first + k);
            for (int64_t row = 0; row < rows; row += kTileRows) {
                const int tile_rows = int(std::min<int64_t>(rows - row, kTileRows));
                const float* left = a.data + (a.transposed ? row + k * a.stride : row * a.stride + k);
                tile_function(tile_rows, int(columns / kLanes), a.transposed, kTiles)(
                    left, a.stride, right, std::min(depth - k, kDepth), c + row * c_stride + panel * kPanel, c_stride,
                    accumulate || k > 0);
            }
        }
    }
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
