// Winograd's minimal filtering F(m x m, 3x3): tiles of T = m + 2 pixels, T² products where the direct form takes 9m².
//
//   Y = Aᵀ [ (G g Gᵀ) ∘ (Bᵀ d B) ] A
//
// F(2): points 0, 1, -1 and infinity. F(4): points 0, ±√½, ±√2 and infinity. With the usual 0, ±1, ±2 the largest error
// is 4 to 8 times that of the direct form; these points are symmetric under x -> 1/x, which keeps all factors near 1.
#pragma once

#include <cmath>

#include "simd.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

template <int kOutputs>
struct Winograd;

template <>
struct Winograd<2> {
    static constexpr int kTile = 4;

    // d[0], d[stride], … become Bᵀ d.
    static inline __attribute__((always_inline)) void input(Vec* d, int stride) {
        const Vec a = d[0], b = d[stride], c = d[2 * stride], e = d[3 * stride];
        d[0] = a - c;
        d[stride] = b + c;
        d[2 * stride] = c - b;
        d[3 * stride] = b - e;
    }

    // m[0], m[stride], … become Aᵀ m, in the first kOutputs places.
    static inline __attribute__((always_inline)) void output(Vec* m, int stride) {
        const Vec a = m[0], b = m[stride], c = m[2 * stride], e = m[3 * stride];
        m[0] = a + (b + c);
        m[stride] = (b - c) - e;
    }

    // G g for a column of three taps.
    template <class Value>
    static inline __attribute__((always_inline)) void filter(const Value* g, Value* out) {
        out[0] = g[0];
        out[1] = 0.5 * (g[0] + g[1] + g[2]);
        out[2] = 0.5 * (g[0] - g[1] + g[2]);
        out[3] = g[2];
    }
};

template <>
struct Winograd<4> {
    static constexpr int kTile = 6;

    static inline __attribute__((always_inline)) void input(Vec* d, int stride) {
        const Vec root2 = splat(0x1.6a09e6p+0f), half_root2 = splat(0x1.6a09e6p-1f);
        const Vec a = d[0], b = d[stride], c = d[2 * stride], e = d[3 * stride], f = d[4 * stride], g = d[5 * stride];
        const Vec even = fma(splat(-2.0f), c, f), odd = fma(half_root2, e, -(root2 * b));
        const Vec far_even = fma(splat(-0.5f), c, f), far_odd = fma(root2, e, -(half_root2 * b));
        d[0] = fma(splat(-2.5f), c, a + f);
        d[stride] = even + odd;
        d[2 * stride] = even - odd;
        d[3 * stride] = far_even + far_odd;
        d[4 * stride] = far_even - far_odd;
        d[5 * stride] = fma(splat(-2.5f), e, b + g);
    }

    static inline __attribute__((always_inline)) void output(Vec* m, int stride) {
        const Vec near_even = m[stride] + m[2 * stride], near_odd = m[stride] - m[2 * stride];
        const Vec far_even = m[3 * stride] + m[4 * stride], far_odd = m[3 * stride] - m[4 * stride];
        const Vec first = m[0], last = m[5 * stride];
        m[0] = first + (near_even + far_even);
        m[stride] = fma(splat(0x1.6a09e6p-1f), near_odd, splat(0x1.6a09e6p+0f) * far_odd);
        m[2 * stride] = fma(splat(0.5f), near_even, 2.0f * far_even);
        m[3 * stride] = last + fma(splat(0x1.6a09e6p-2f), near_odd, splat(0x1.6a09e6p+1f) * far_odd);
    }

    template <class Value>
    static inline __attribute__((always_inline)) void filter(const Value* g, Value* out) {
        const double root2 = std::sqrt(2.0), half_root2 = std::sqrt(0.5);
        out[0] = g[0];
        out[1] = (g[0] + half_root2 * g[1] + 0.5 * g[2]) / -1.5;
        out[2] = (g[0] - half_root2 * g[1] + 0.5 * g[2]) / -1.5;
        out[3] = (g[0] + root2 * g[1] + 2 * g[2]) / 6;
        out[4] = (g[0] - root2 * g[1] + 2 * g[2]) / 6;
        out[5] = g[2];
    }
};

}  // namespace edm_fast::cpu::EDM_FAST_ISA
