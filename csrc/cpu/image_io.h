// Runs of consecutive elements of one sample, from any layout and dtype into a plain array, and back.
#pragma once

#include <cstdint>

#include "edm_fast/image_view.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

// Element `first + i` of the sample lies at base[(first + i) / pixels * channel_stride + (first + i) % pixels *
// pixel_stride].
template <class Move>
static inline void for_each_element(const ImageView& view, int64_t pixels, int64_t first, int64_t count,
                                    const Move& move) {
    int64_t channel = first / pixels;
    int64_t pixel = first % pixels;
    int64_t done = 0;
    while (done < count) {
        const int64_t run = pixels - pixel < count - done ? pixels - pixel : count - done;
        const int64_t start = channel * view.channel_stride + pixel * view.pixel_stride;
        if (view.pixel_stride == 1) {
            for (int64_t i = 0; i < run; ++i) move(start + i, done + i);
        } else if (view.pixel_stride == 3) {  // RGB, channels-last: a stride that the compiler knows makes vectors
            for (int64_t i = 0; i < run; ++i) move(start + i * 3, done + i);
        } else {
            for (int64_t i = 0; i < run; ++i) move(start + i * view.pixel_stride, done + i);
        }
        done += run;
        pixel = 0;
        ++channel;
    }
}

template <class Element, class Compute>
static void load_as(const ImageView& view, int64_t sample, int64_t pixels, int64_t first, int64_t count, Compute* out) {
    const Element* base = static_cast<const Element*>(view.data) + sample * view.sample_stride;
    for_each_element(view, pixels, first, count,
                     [=](int64_t from, int64_t to) { out[to] = Compute(to_float(base[from])); });
}

template <class Element, class Compute>
static void store_as(const ImageView& view, int64_t sample, int64_t pixels, int64_t first, int64_t count,
                     const Compute* in) {
    Element* base = static_cast<Element*>(view.data) + sample * view.sample_stride;
    for_each_element(view, pixels, first, count,
                     [=](int64_t to, int64_t from) { base[to] = Store<Element>::from(in[from]); });
}

// visit(element) with a value of the dtype's C++ type, for its type alone.
template <class Visit>
static inline void with_element(DType dtype, const Visit& visit) {
    switch (dtype) {
        case kFloat64:
            return visit(double{});
        case kFloat32:
            return visit(float{});
        case kFloat16:
            return visit(Half{});
        case kBFloat16:
            return visit(BFloat16{});
    }
}

// A missing view reads as NaN: a mistake must not pass for a zero.
template <class Compute>
static void load(const ImageView& view, int64_t sample, int64_t pixels, int64_t first, int64_t count, Compute* out) {
    if (view.data == nullptr) {
        for (int64_t i = 0; i < count; ++i) out[i] = Compute(NAN);
        return;
    }
    with_element(view.dtype,
                 [&](auto element) { load_as<decltype(element)>(view, sample, pixels, first, count, out); });
}

template <class Compute>
static void store(const ImageView& view, int64_t sample, int64_t pixels, int64_t first, int64_t count,
                  const Compute* in) {
    with_element(view.dtype,
                 [&](auto element) { store_as<decltype(element)>(view, sample, pixels, first, count, in); });
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
