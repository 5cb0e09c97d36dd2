// Winograd's minimal filtering F(m x n, 3x3): from tiles of (m + 2) x (n + 2) pixels, as many products where the direct
// form takes 9mn.
//
//   Y = Aₘᵀ [ (Gₘ g Gₙᵀ) ∘ (Bₘᵀ d Bₙ) ] Aₙ
//
// and, since this is linear in the taps g, their gradient from that of Y:
//
//   ∇g = Gₘᵀ [ (Aₘ ∇Y Aₙᵀ) ∘ (Bₘᵀ d Bₙ) ] Gₙ
//
// F(2): points 0, 1, -1 and infinity. F(4): points 0, ±181/256, ±181/128 (√½, √2) and infinity. With the usual 0, ±1,
// ±2 the largest error is 4 to 8 times that of the direct form; these points are symmetric under x -> 1/x, which keeps
// all factors near 1.
#pragma once

#include "simd.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

// The one-dimensional transforms of F(kOutputs, 3).
template <int kOutputs>
struct Winograd;

template <>
struct Winograd<2> {
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

    // d[0], d[stride], … of kOutputs gradients become A d.
    static inline __attribute__((always_inline)) void gradient(Vec* d, int stride) {
        const Vec a = d[0], b = d[stride];
        d[stride] = a + b;
        d[2 * stride] = a - b;
        d[3 * stride] = -b;
    }

    // m[0], m[stride], … become Gᵀ m, in the first three places.
    static inline __attribute__((always_inline)) void taps(Vec* m, int stride) {
        const Vec half = splat(0.5f), b = m[stride], c = m[2 * stride], even = half * (b + c);
        m[0] += even;
        m[stride] = half * (b - c);
        m[2 * stride] = even + m[3 * stride];
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
    // √½ and √2, so short that every coefficient below is a float32: the forms are exact inverses of each other.
    static constexpr double kNear = 181.0 / 256, kFar = 2 * kNear;
    static constexpr double kNear2 = kNear * kNear, kFar2 = kFar * kFar;
    // Derivatives of x (x² - near²) (x² - far²) at the points.
    static constexpr double kAtZero = kNear2 * kFar2;
    static constexpr double kAtNear = 2 * kNear2 * (kNear2 - kFar2), kAtFar = 2 * kFar2 * (kFar2 - kNear2);

    static inline __attribute__((always_inline)) void input(Vec* d, int stride) {
        const Vec a = d[0], b = d[stride], c = d[2 * stride], e = d[3 * stride], f = d[4 * stride], g = d[5 * stride];
        const Vec sum = splat(float(-(kNear2 + kFar2))), product = splat(float(kNear2 * kFar2));
        const Vec even = fma(splat(float(-kFar2)), c, f);
        const Vec odd = fma(splat(float(kNear)), e, splat(float(-kNear * kFar2)) * b);
        const Vec far_even = fma(splat(float(-kNear2)), c, f);
        const Vec far_odd = fma(splat(float(kFar)), e, splat(float(-kFar * kNear2)) * b);
        d[0] = fma(product, a, fma(sum, c, f));
        d[stride] = even + odd;
        d[2 * stride] = even - odd;
        d[3 * stride] = far_even + far_odd;
        d[4 * stride] = far_even - far_odd;
        d[5 * stride] = fma(product, b, fma(sum, e, g));
    }

    static inline __attribute__((always_inline)) void output(Vec* m, int stride) {
        const Vec near_even = m[stride] + m[2 * stride], near_odd = m[stride] - m[2 * stride];
        const Vec far_even = m[3 * stride] + m[4 * stride], far_odd = m[3 * stride] - m[4 * stride];
        const Vec first = m[0], last = m[5 * stride];
        m[0] = first + (near_even + far_even);
        m[stride] = fma(splat(float(kNear)), near_odd, splat(float(kFar)) * far_odd);
        m[2 * stride] = fma(splat(float(kNear2)), near_even, splat(float(kFar2)) * far_even);
        m[3 * stride] = last + fma(splat(float(kNear2 * kNear)), near_odd, splat(float(kFar2 * kFar)) * far_odd);
    }

    static inline __attribute__((always_inline)) void gradient(Vec* d, int stride) {
        const Vec a = d[0], b = d[stride], c = d[2 * stride], e = d[3 * stride];
        const Vec near_even = fma(splat(float(kNear2)), c, a), far_even = fma(splat(float(kFar2)), c, a);
        const Vec near_odd = splat(float(kNear)) * fma(splat(float(kNear2)), e, b);
        const Vec far_odd = splat(float(kFar)) * fma(splat(float(kFar2)), e, b);
        d[stride] = near_even + near_odd;
        d[2 * stride] = near_even - near_odd;
        d[3 * stride] = far_even + far_odd;
        d[4 * stride] = far_even - far_odd;
        d[5 * stride] = e;
    }

    static inline __attribute__((always_inline)) void taps(Vec* m, int stride) {
        const Vec near_even = splat(float(1 / kAtNear)) * (m[stride] + m[2 * stride]);
        const Vec near_odd = splat(float(kNear / kAtNear)) * (m[stride] - m[2 * stride]);
        const Vec far_even = splat(float(1 / kAtFar)) * (m[3 * stride] + m[4 * stride]);
        const Vec far_odd = splat(float(kFar / kAtFar)) * (m[3 * stride] - m[4 * stride]);
        m[0] = fma(splat(float(1 / kAtZero)), m[0], near_even + far_even);
        m[stride] = near_odd + far_odd;
        m[2 * stride] = fma(splat(float(kNear2)), near_even, fma(splat(float(kFar2)), far_even, m[5 * stride]));
    }

    template <class Value>
    static inline __attribute__((always_inline)) void filter(const Value* g, Value* out) {
        out[0] = g[0] / kAtZero;
        out[1] = (g[0] + kNear * g[1] + kNear2 * g[2]) / kAtNear;
        out[2] = (g[0] - kNear * g[1] + kNear2 * g[2]) / kAtNear;
        out[3] = (g[0] + kFar * g[1] + kFar2 * g[2]) / kAtFar;
        out[4] = (g[0] - kFar * g[1] + kFar2 * g[2]) / kAtFar;
        out[5] = g[2];
    }
};

}  // namespace edm_fast::cpu::EDM_FAST_ISA
