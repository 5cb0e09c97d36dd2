// Runs of kPlanes planes at once: the whole sample as one plane, or the three channels of RGB images, whose
// channels-last pixels are then read and written as they lie, by vectors, and not channel by channel with a stride.
#pragma once

#include <cstdint>

#include "edm_fast/image_view.h"
#include "image_io.h"
#include "independent.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

template <class Element, int64_t kRun>
static void load_rgb(const ImageView& view, int64_t sample, int64_t first, int64_t count, float (&out)[3][kRun]) {
    const Element* base = static_cast<const Element*>(view.data) + sample * view.sample_stride + 3 * first;
    EDM_FAST_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) {
        out[0][i] = float(to_float(base[3 * i]));
        out[1][i] = float(to_float(base[3 * i + 1]));
        out[2][i] = float(to_float(base[3 * i + 2]));
    }
}

template <class Element, int64_t kRun>
static void store_rgb(const ImageView& view, int64_t sample, int64_t first, int64_t count, const float (&in)[3][kRun]) {
    Element* base = static_cast<Element*>(view.data) + sample * view.sample_stride + 3 * first;
    EDM_FAST_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) {
        base[3 * i] = Store<Element>::from(in[0][i]);
        base[3 * i + 1] = Store<Element>::from(in[1][i]);
        base[3 * i + 2] = Store<Element>::from(in[2][i]);
    }
}

// out[p][i] = element first + i of plane p, which has plane_size elements.
template <int kPlanes, int64_t kRun>
static void load_planes(const ImageView& view, int64_t sample, int64_t pixels, int64_t plane_size, int64_t first,
                        int64_t count, float (&out)[kPlanes][kRun]) {
    if constexpr (kPlanes == 3) {
        if (is_interleaved_rgb(view)) {
            return with_element(view.dtype,
                                [&](auto element) { load_rgb<decltype(element)>(view, sample, first, count, out); });
        }
    }
    for (int p = 0; p < kPlanes; ++p) load(view, sample, pixels, p * plane_size + first, count, out[p]);
}

template <int kPlanes, int64_t kRun>
static void store_planes(const ImageView& view, int64_t sample, int64_t pixels, int64_t plane_size, int64_t first,
                         int64_t count, const float (&in)[kPlanes][kRun]) {
    if constexpr (kPlanes == 3) {
        if (is_interleaved_rgb(view)) {
            return with_element(view.dtype,
                                [&](auto element) { store_rgb<decltype(element)>(view, sample, first, count, in); });
        }
    }
    for (int p = 0; p < kPlanes; ++p) store(view, sample, pixels, p * plane_size + first, count, in[p]);
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
