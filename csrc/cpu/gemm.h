// The matrix product under every convolution: C = A B for rows of A anywhere in memory and B packed in panels.
//
// A panel is kPanelVectors vectors of output channels wide (the last of a matrix may be narrower) and lies in memory as
// [k][width]. A micro kernel keeps kPanelRows × kPanelVectors accumulators in registers. k runs in blocks of
// Product::block_depth terms, so that a block of a panel stays in the first-level cache while all rows pass over it; a
// block's sums start from 0 and are added to C, which keeps the chains of roundings short. Each element of C goes
// through the same operations whatever rows it is computed with.
//
// Where factors are pairs of bfloat16, a float of A or of B stands for a pair, and k counts pairs.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

#if defined(__AVX512F__)
constexpr int kPanelVectors = 4;
#else
constexpr int kPanelVectors = 2;
#endif
constexpr int kPanelRows = 6;
constexpr int kPanelWidth = kPanelVectors * kLanes;

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

constexpr int64_t kLineBytes = 64;

// Keeps a value in a register where the compiler would read it again from memory.
EDM_FAST_INLINE void pin(Vec& value) {
#if defined(__AVX512F__)
    asm("" : "+v"(value));
#elif defined(__AVX2__)
    asm("" : "+x"(value));
#else
    static_cast<void>(value);
#endif
}

// Kinds of factors: how many a float of A and of B holds, and how they are multiplied and written.
struct Floats {
    using Factor = float;
    static constexpr int kPerFloat = 1;
    // Terms in a block. Short sums leave less room for the rounding of Winograd's transforms: they get shorter chains.
    static int64_t block_depth(int64_t depth) { return depth < 256 ? 32 : depth < 512 ? 64 : 128; }
    static __attribute__((always_inline)) Vec add_product(Vec a, Vec b, Vec sum) { return fma(a, b, sum); }
    static __attribute__((always_inline)) void write(float* to, Vec value) { store(to, value); }
};

#if defined(__AVX512F__)
struct Pairs {
    using Factor = BFloat16;
    static constexpr int kPerFloat = 2;
    // The factors have far larger errors than the sums.
    static int64_t block_depth(int64_t) { return 128; }
    static __attribute__((always_inline)) Vec add_product(Vec a, Vec b, Vec sum) { return multiply_pairs(a, b, sum); }
    static __attribute__((always_inline)) void write(BFloat16* to, Vec value) { store_rounded(to, value); }
};
#endif

// A float, or a pair of which nobody knows that it is none; bfloat16 images may lie at any even address.
EDM_FAST_INLINE float factor_at(const float* row, int64_t k) {
    float value;
    std::memcpy(&value, row + k, sizeof value);
    return value;
}

// One term of every sum: row[i][k] times the vectors at b.
template <class Product, int kRows, int kVectors>
EDM_FAST_INLINE void add_products(const float* const (&row)[kRows], int64_t k, const float* b,
                                  Vec (&sum)[kRows][kVectors]) {
    Vec column[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
        column[j] = load(b + j * kLanes);
        pin(column[j]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
        const Vec value = splat(factor_at(row[i], k));
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) sum[i][j] = Product::add_product(value, column[j], sum[i][j]);
    }
}

// For every two k, kLines cache lines from `ahead` on are fetched, and `ahead` moves on by `step` bytes.
template <class Product, int kRows, int kVectors, int kLines>
EDM_FAST_INLINE void micro_kernel(const float* const* a, int64_t depth, const float* b, float* c, int64_t c_stride,
                                  bool accumulate, const char* ahead, int64_t step) {
    constexpr int kWidth = kVectors * kLanes;
    Vec sum[kRows][kVectors] = {};
    const float* row[kRows];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) row[i] = a[i];
    int64_t k = 0;
    for (; k + 2 <= depth; k += 2, b += 2 * kWidth) {
#pragma GCC unroll 8
        for (int line = 0; line < kLines; ++line) __builtin_prefetch(ahead + line * kLineBytes, 0, 2);
        ahead += step;
        add_products<Product, kRows, kVectors>(row, k, b, sum);
        add_products<Product, kRows, kVectors>(row, k + 1, b + kWidth, sum);
    }
    if (k < depth) add_products<Product, kRows, kVectors>(row, k, b, sum);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) {
            float* to = c + i * c_stride + j * kLanes;
            store(to, accumulate ? load(to) + sum[i][j] : sum[i][j]);
        }
    }
}

template <class Product, int kVectors, int kLines>
static inline void some_rows(const float* const* a, int rows, int64_t depth, const float* b, float* c, int64_t c_stride,
                             bool accumulate, const char* ahead, int64_t step) {
    switch (rows) {
        case 6:
            return micro_kernel<Product, 6, kVectors, kLines>(a, depth, b, c, c_stride, accumulate, ahead, step);
        case 5:
            return micro_kernel<Product, 5, kVectors, kLines>(a, depth, b, c, c_stride, accumulate, ahead, step);
        case 4:
            return micro_kernel<Product, 4, kVectors, kLines>(a, depth, b, c, c_stride, accumulate, ahead, step);
        case 3:
            return micro_kernel<Product, 3, kVectors, kLines>(a, depth, b, c, c_stride, accumulate, ahead, step);
        case 2:
            return micro_kernel<Product, 2, kVectors, kLines>(a, depth, b, c, c_stride, accumulate, ahead, step);
        default:
            return micro_kernel<Product, 1, kVectors, kLines>(a, depth, b, c, c_stride, accumulate, ahead, step);
    }
}

// While the rows pass over a block of weights, what lies at `next`, as large as the block, is brought nearer at an even
// pace: bursts would take the memory's time from the loads of the kernel itself.
template <class Product, int kVectors, class RowAt>
static inline void panel_rows(const RowAt& row_at, int64_t rows, int64_t first_k, int64_t depth, const float* b,
                              float* c, int64_t c_stride, bool accumulate, const float* next) {
    constexpr int64_t kStepBytes = 2 * kVectors * kLanes * sizeof(float);
    const float* a[kPanelRows];
    const int64_t groups = (rows + kPanelRows - 1) / kPanelRows;
    const int64_t step = next == nullptr ? 0 : (kStepBytes + groups - 1) / groups;
    const char* ahead = reinterpret_cast<const char*>(next);
    for (int64_t r = 0; r < rows; r += kPanelRows) {
        const int count = rows - r < kPanelRows ? int(rows - r) : kPanelRows;
        for (int i = 0; i < count; ++i) a[i] = row_at(r + i) + first_k;
        float* to = c + r * c_stride;
        if (ahead == nullptr) {
            some_rows<Product, kVectors, 0>(a, count, depth, b, to, c_stride, accumulate, ahead, step);
            continue;
        }
        if (step <= kLineBytes) {
            some_rows<Product, kVectors, 1>(a, count, depth, b, to, c_stride, accumulate, ahead, step);
        } else if (step <= 4 * kLineBytes) {
            some_rows<Product, kVectors, 4>(a, count, depth, b, to, c_stride, accumulate, ahead, step);
        } else {
            some_rows<Product, kVectors, 8>(a, count, depth, b, to, c_stride, accumulate, ahead, step);
        }
        ahead += depth / 2 * step;
    }
}

// C[r, 0 … width) = (or += if accumulate) sum_k row_at(r)[k] · B[k, :] for r in [0, rows); B is one panel
// [depth][width] of `vectors` vectors. If `next` is given, the panel that
// lies there is fetched from memory meanwhile.
template <class Product, class RowAt>
static inline void multiply_panel(const RowAt& row_at, int64_t rows, int64_t depth, int vectors, const float* b,
                                  float* c, int64_t c_stride, bool accumulate, const float* next = nullptr) {
    const int64_t deep = Product::block_depth(depth);
    for (int64_t k = 0; k < depth; k += deep) {
        const int64_t block = depth - k < deep ? depth - k : deep;
        const float* part = b + k * vectors * kLanes;
        const bool add = accumulate || k > 0;
        const float* following = next == nullptr ? nullptr : next + k * vectors * kLanes;
        switch (vectors) {
            case 1:
                panel_rows<Product, 1>(row_at, rows, k, block, part, c, c_stride, add, following);
                break;
            case 2:
                panel_rows<Product, 2>(row_at, rows, k, block, part, c, c_stride, add, following);
                break;
#if defined(__AVX512F__)
            case 3:
                panel_rows<Product, 3>(row_at, rows, k, block, part, c, c_stride, add, following);
                break;
            case 4:
                panel_rows<Product, 4>(row_at, rows, k, block, part, c, c_stride, add, following);
                break;
#endif
        }
    }
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
