// The matrix product under every convolution: C = A B for rows of A anywhere in memory and B packed in panels.
//
// A panel is kPanelVectors vectors of output channels wide (the last of a matrix may be narrower) and lies in memory as
// [k][width]. A micro kernel keeps kPanelRows × kPanelVectors accumulators in registers. k runs in blocks of
// kBlockDepth, so that a block of a panel stays in the first-level cache while all rows pass over it; a block's sums
// start from 0 and are added to C, which keeps the chains of roundings short. Each element of C goes through the same
// operations whatever rows it is computed with.
#pragma once

#include <cstdint>

#include "simd.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

#if defined(__AVX512F__)
constexpr int kPanelVectors = 4;
#else
constexpr int kPanelVectors = 2;
#endif
constexpr int kPanelRows = 6;
constexpr int kPanelWidth = kPanelVectors * kLanes;
constexpr int64_t kBlockDepth = 64;

EDM_FAST_INLINE int64_t round_up(int64_t value, int64_t unit) {
    return (value + unit - 1) / unit * unit;
}

// Output channels as they are packed: whole vectors.
EDM_FAST_INLINE int64_t padded_channels(int64_t channels) {
    return round_up(channels, kLanes);
}

EDM_FAST_INLINE int64_t panel_count(int64_t channels) {
    return (channels + kPanelWidth - 1) / kPanelWidth;
}

// Vectors in panel `panel`.
EDM_FAST_INLINE int panel_vectors(int64_t channels, int64_t panel) {
    const int64_t left = padded_channels(channels) / kLanes - panel * kPanelVectors;
    return left < kPanelVectors ? int(left) : kPanelVectors;
}

template <int kRows, int kVectors>
EDM_FAST_INLINE void micro_kernel(const float* const* a, int64_t depth, const float* b, float* c, int64_t c_stride,
                                  bool accumulate) {
    Vec sum[kRows][kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) sum[i][j] = Vec{};
    }
    const float* row[kRows];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) row[i] = a[i];
    for (int64_t k = 0; k < depth; ++k) {
        Vec column[kVectors];
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) column[j] = load(b + j * kLanes);
        b += kVectors * kLanes;
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
            const Vec value = splat(row[i][k]);
#pragma GCC unroll 4
            for (int j = 0; j < kVectors; ++j) sum[i][j] = fma(value, column[j], sum[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) {
            float* to = c + i * c_stride + j * kLanes;
            store(to, accumulate ? load(to) + sum[i][j] : sum[i][j]);
        }
    }
}

template <int kVectors, class RowAt>
static inline void panel_rows(const RowAt& row_at, int64_t rows, int64_t first_k, int64_t depth, const float* b,
                              float* c, int64_t c_stride, bool accumulate) {
    const float* a[kPanelRows];
    int64_t r = 0;
    for (; r + kPanelRows <= rows; r += kPanelRows) {
        for (int i = 0; i < kPanelRows; ++i) a[i] = row_at(r + i) + first_k;
        micro_kernel<kPanelRows, kVectors>(a, depth, b, c + r * c_stride, c_stride, accumulate);
    }
    const int left = int(rows - r);
    for (int i = 0; i < left; ++i) a[i] = row_at(r + i) + first_k;
    float* rest = c + r * c_stride;
    switch (left) {
        case 5:
            return micro_kernel<5, kVectors>(a, depth, b, rest, c_stride, accumulate);
        case 4:
            return micro_kernel<4, kVectors>(a, depth, b, rest, c_stride, accumulate);
        case 3:
            return micro_kernel<3, kVectors>(a, depth, b, rest, c_stride, accumulate);
        case 2:
            return micro_kernel<2, kVectors>(a, depth, b, rest, c_stride, accumulate);
        case 1:
            return micro_kernel<1, kVectors>(a, depth, b, rest, c_stride, accumulate);
        default:
            return;
    }
}

// C[r, 0 … width) = (or += if accumulate) sum_k row_at(r)[k] · B[k, :] for r in [0, rows); B is one panel
// [depth][width] of `vectors` vectors.
template <class RowAt>
static inline void multiply_panel(const RowAt& row_at, int64_t rows, int64_t depth, int vectors, const float* b,
                                  float* c, int64_t c_stride, bool accumulate) {
    for (int64_t k = 0; k < depth; k += kBlockDepth) {
        const int64_t block = depth - k < kBlockDepth ? depth - k : kBlockDepth;
        const float* part = b + k * vectors * kLanes;
        const bool add = accumulate || k > 0;
        switch (vectors) {
            case 1:
                panel_rows<1>(row_at, rows, k, block, part, c, c_stride, add);
                break;
            case 2:
                panel_rows<2>(row_at, rows, k, block, part, c, c_stride, add);
                break;
#if defined(__AVX512F__)
            case 3:
                panel_rows<3>(row_at, rows, k, block, part, c, c_stride, add);
                break;
            case 4:
                panel_rows<4>(row_at, rows, k, block, part, c, c_stride, add);
                break;
#endif
        }
    }
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
