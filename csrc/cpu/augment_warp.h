// The warp of one sample, four channels at a time: see csrc/include/edm_fast/augment.h. A pixel is a Quad, its four
// channels side by side, so that the four neighbours of a position are four loads for all channels.
//
// Of the fine grid u only the box is made that the sample's positions read, by two passes of six taps per element. Its
// rows then give v row by row, which goes down along x at once, and along y at the end.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "batch.h"
#include "edm_fast/augment.h"
#include "simd.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

constexpr int kQuad = 4;
typedef float Quad __attribute__((vector_size(4 * kQuad)));

EDM_FAST_INLINE Quad quad_at(const float* from) {
    Quad value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

EDM_FAST_INLINE void put_quad(float* to, Quad value) {
    std::memcpy(to, &value, sizeof value);
}

// NaN becomes the lower bound.
EDM_FAST_INLINE double clamped(double value, double low, double high) {
    return value > low ? (value < high ? value : high) : low;
}

// One axis of the box: elements [first, last] of u can be read, in pairs (2m, 2m + 1) of which `pairs` are made from
// m = first_pair on. Pixels [1 - extent, 2 · extent - 2] exist, and so do elements [low, high].
struct Axis {
    int64_t extent;
    int64_t low, high;
    int64_t first, last;
    int64_t first_pair, pairs;

    // Of the elements 0 outside of [low, high] one is kept on either side, for the positions out there.
    Axis(int64_t extent_, double smallest, double largest)
        : extent(extent_), low(-2 * (extent - 1)), high(4 * extent - 3) {
        first = int64_t(clamped(std::floor(smallest), double(low - 1), double(high)));
        last = int64_t(clamped(std::floor(largest) + 1, double(first + 1), double(high + 1)));
        first_pair = first >> 1;
        pairs = (last >> 1) - first_pair + 1;
    }
    // The pixels that the pairs are made of.
    int64_t first_pixel() const { return first_pair - 3; }
    int64_t pixels() const { return pairs + 6; }
    bool has_pixel(int64_t pixel) const { return pixel > -extent && pixel < 2 * extent - 1; }
    bool has_element(int64_t element) const { return element >= low && element <= high; }
};

// Elements of v along an axis; the first is number -kSym6Before.
EDM_FAST_INLINE int64_t fine_extent(int64_t extent) {
    return 2 * extent + 2 * kSym6Before;
}

// The position of v's element (row, column), counted from 0, as an element of u, along x (axis 0) or y (axis 1).
struct Positions {
    double base, per_column, per_row;

    Positions(const AugmentArgs& args, const Warp& warp, int axis) {
        const double along_x = double(-kSym6Before + 1 - args.width), along_y = double(-kSym6Before + 1 - args.height);
        per_column = warp.a[axis][0];
        per_row = warp.a[axis][1];
        base = per_column * along_x + per_row * along_y + 2.0 * warp.b[axis] +
               double((axis == 0 ? args.width : args.height) - 1);
    }
    double at(int64_t row, int64_t column) const { return base + double(row) * per_row + double(column) * per_column; }
    Axis axis(const AugmentArgs& args, int64_t extent) const {
        const int64_t bottom = fine_extent(args.height) - 1, right = fine_extent(args.width) - 1;
        double smallest = at(0, 0), largest = smallest;
        for (double corner : {at(0, right), at(bottom, 0), at(bottom, right)}) {
            smallest = corner < smallest ? corner : smallest;
            largest = corner > largest ? corner : largest;
        }
        return Axis(extent, smallest, largest);
    }
};

struct WarpPlan {
    Positions positions_x, positions_y;
    Axis x, y;
    int64_t height, width;  // of the image

    WarpPlan(const AugmentArgs& args, const Warp& warp)
        : positions_x(args, warp, 0),
          positions_y(args, warp, 1),
          x(positions_x.axis(args, args.width)),
          y(positions_y.axis(args, args.height)),
          height(args.height),
          width(args.width) {}
};

struct WarpMemory {
    float* pixels;  // [x.pixels] Quads: a row of pixels, which the caller fills
    float* wide;    // [y.pixels, 2 · x.pairs] Quads: up along x
    float* fine;    // [2 · y.pairs, 2 · x.pairs] Quads: u
    float* line;    // [fine_extent(width)] Quads: a row of v
    float* narrow;  // [fine_extent(height), width] Quads: v, down along x; in the place of `wide`, which u was made of
    int32_t *left, *top;     // [fine_extent(width)] the element of u, counted within the box, at which a position is
    float *past_x, *past_y;  // [fine_extent(width)] and how far past this element

    WarpMemory() = default;
    WarpMemory(const WarpPlan& plan, Arena& arena) {
        const int64_t columns = 2 * plan.x.pairs, positions = fine_extent(plan.width);
        const int64_t wide_quads = plan.y.pixels() * columns, narrow_quads = fine_extent(plan.height) * plan.width;
        pixels = arena.take<float>(plan.x.pixels() * kQuad);
        wide = arena.take<float>((wide_quads > narrow_quads ? wide_quads : narrow_quads) * kQuad);
        fine = arena.take<float>(2 * plan.y.pairs * columns * kQuad);
        line = arena.take<float>(positions * kQuad);
        narrow = wide;
        left = arena.take<int32_t>(positions);
        top = arena.take<int32_t>(positions);
        past_x = arena.take<float>(positions);
        past_y = arena.take<float>(positions);
    }
};

// Pair m has the pixels m - 3 … m + 2 in its first element, by the odd taps from the last on, and m - 2 … m + 3 in its
// second, by the even ones.
template <class Value, class At>
EDM_FAST_INLINE void pair_of(const At& at, Value* first, Value* second) {
    Value even = at(0) * kSym6[11], odd = at(1) * kSym6[10];
    for (int i = 1; i < 6; ++i) {
        even += at(i) * kSym6[11 - 2 * i];
        odd += at(i + 1) * kSym6[10 - 2 * i];
    }
    *first = even;
    *second = odd;
}

// Of the row of pixels that lies in memory.pixels.
static void up_along_x(const WarpPlan& plan, const WarpMemory& memory, int64_t row) {
    const float* from = memory.pixels;
    float* to = memory.wide + row * 2 * plan.x.pairs * kQuad;
    for (int64_t m = 0; m < plan.x.pairs; ++m, from += kQuad, to += 2 * kQuad) {
        Quad first, second;
        pair_of([&](int i) __attribute__((always_inline)) { return quad_at(from + i * kQuad); }, &first, &second);
        put_quad(to, first);
        put_quad(to + kQuad, second);
    }
}

static void up_along_y(const WarpPlan& plan, const WarpMemory& memory) {
    const int64_t width = 2 * plan.x.pairs * kQuad;
    for (int64_t m = 0; m < plan.y.pairs; ++m) {
        const float* from = memory.wide + m * width;
        float* to = memory.fine + 2 * m * width;
        for_vectors(width, [&](int64_t c, int count) __attribute__((always_inline)) {
            Vec first, second;
            pair_of([&](int i) __attribute__((always_inline)) { return load_some(from + i * width + c, count); },
                    &first, &second);
            store_some(to + c, first, count);
            store_some(to + width + c, second, count);
        });
    }
}

// The filters spill over the ends of the grid, where u is 0.
static void clear_outside(const WarpPlan& plan, const WarpMemory& memory) {
    const int64_t columns = 2 * plan.x.pairs;
    for (int64_t row = 0; row < 2 * plan.y.pairs; ++row) {
        float* line = memory.fine + row * columns * kQuad;
        if (!plan.y.has_element(2 * plan.y.first_pair + row)) {
            std::memset(line, 0, sizeof(float) * size_t(columns * kQuad));
            continue;
        }
        // At most two elements at either end: one that is kept, and one to make up a pair.
        for (int64_t column : {int64_t(0), int64_t(1), columns - 2, columns - 1}) {
            if (!plan.x.has_element(2 * plan.x.first_pair + column)) put_quad(line + column * kQuad, Quad{});
        }
    }
}

static void find_positions(const WarpPlan& plan, const WarpMemory& memory, int64_t row) {
    const int64_t count = fine_extent(plan.width);
    const double start_x = plan.positions_x.at(row, 0), start_y = plan.positions_y.at(row, 0);
    const double step_x = plan.positions_x.per_column, step_y = plan.positions_y.per_column;
    const double origin_x = double(2 * plan.x.first_pair), origin_y = double(2 * plan.y.first_pair);
    const double first_x = double(plan.x.first) - origin_x, last_x = double(plan.x.last) - origin_x;
    const double first_y = double(plan.y.first) - origin_y, last_y = double(plan.y.last) - origin_y;
    const int32_t end_x = int32_t(last_x) - 1, end_y = int32_t(last_y) - 1;
    for (int64_t i = 0; i < count; ++i) {
        const double x = clamped(start_x + double(i) * step_x - origin_x, first_x, last_x);
        const double y = clamped(start_y + double(i) * step_y - origin_y, first_y, last_y);
        const int32_t left = int32_t(x) < end_x ? int32_t(x) : end_x, top = int32_t(y) < end_y ? int32_t(y) : end_y;
        memory.left[i] = left;
        memory.top[i] = top;
        memory.past_x[i] = float(x - left);
        memory.past_y[i] = float(y - top);
    }
}

static void warp_row(const WarpPlan& plan, const WarpMemory& memory, int64_t row) {
    find_positions(plan, memory, row);
    const int64_t below = 2 * plan.x.pairs * kQuad, count = fine_extent(plan.width);
    for (int64_t i = 0; i < count; ++i) {
        const float* at = memory.fine + memory.top[i] * below + memory.left[i] * kQuad;
        const float past_x = memory.past_x[i], past_y = memory.past_y[i];
        const Quad top = quad_at(at) * (1.0f - past_x) + quad_at(at + kQuad) * past_x;
        const Quad bottom = quad_at(at + below) * (1.0f - past_x) + quad_at(at + below + kQuad) * past_x;
        put_quad(memory.line + i * kQuad, top * (1.0f - past_y) + bottom * past_y);
    }
    float* to = memory.narrow + row * plan.width * kQuad;
    for (int64_t column = 0; column < plan.width; ++column) {
        const float* from = memory.line + 2 * column * kQuad;
        Quad sum = quad_at(from) * kSym6[0];
        for (int k = 1; k < kSym6Taps; ++k) sum += quad_at(from + k * kQuad) * kSym6[k];
        put_quad(to + column * kQuad, sum);
    }
}

// Writes [height, width] Quads, after up_along_x of every row.
static void warp_quads(const WarpPlan& plan, const WarpMemory& memory, float* out) {
    up_along_y(plan, memory);
    clear_outside(plan, memory);
    for (int64_t row = 0; row < fine_extent(plan.height); ++row) warp_row(plan, memory, row);
    const int64_t width = plan.width * kQuad;
    for (int64_t row = 0; row < plan.height; ++row) {
        const float* from = memory.narrow + 2 * row * width;
        for_vectors(width, [&](int64_t c, int count) __attribute__((always_inline)) {
            Vec sum = load_some(from + c, count) * kSym6[0];
            for (int k = 1; k < kSym6Taps; ++k) {
                sum = fma(splat(kSym6[k]), load_some(from + k * width + c, count), sum);
            }
            store_some(out + row * width + c, sum, count);
        });
    }
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
