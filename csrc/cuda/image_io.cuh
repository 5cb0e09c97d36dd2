// Four consecutive elements of one sample, from any layout and dtype, and back. Four, because that is one Philox block.
// Where they lie side by side and aligned they are moved by accesses of 16 bytes (8 for 16-bit elements), or one by
// one.
#pragma once

#include "edm_fast/image_view.h"
#include "launch.cuh"
#include "simt.h"

namespace edm_fast::cuda {

constexpr int kQuad = 4;

// Where the elements first … first + 3 of a sample lie, for a view of [N, C, P]. Elements past the end are not touched;
// with a count of 0 or less there are none.
struct QuadPlace {
    int64_t first, channel, pixel, pixels;
    int count;
};

__device__ __forceinline__ QuadPlace quad_place(int64_t first, int64_t elements, int64_t pixels) {
    QuadPlace place;
    place.first = first;
    place.pixels = pixels;
    place.count = elements - first < kQuad ? int(elements - first) : kQuad;
    if (first < pixels) {
        place.channel = 0;
        place.pixel = first;
    } else if (elements <= int64_t(0xFFFFFFFFu)) {  // a 32-bit division is several times cheaper
        place.channel = uint32_t(first) / uint32_t(pixels);
        place.pixel = uint32_t(first) - uint32_t(place.channel) * uint32_t(pixels);
    } else {
        place.channel = first / pixels;
        place.pixel = first % pixels;
    }
    return place;
}

// Calls move(offset of the element inside the sample, its index in the quad).
template <class Move>
__device__ __forceinline__ void for_each_in_quad(const ImageView& view, const QuadPlace& place, const Move& move) {
    int64_t channel = place.channel, pixel = place.pixel;
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
        if (i < place.count) move(channel * view.channel_stride + pixel * view.pixel_stride, i);
        if (++pixel == place.pixels) {
            pixel = 0;
            ++channel;
        }
    }
}

// The address of the quad's first element if all four lie side by side and aligned, or nullptr.
template <class Element>
__device__ __forceinline__ Element* side_by_side(const ImageView& view, const QuadPlace& place, Element* base) {
    constexpr uintptr_t kAlignment = sizeof(Element) == 2 ? 8 : 16;
    if (view.pixel_stride != 1 || place.count != kQuad) return nullptr;
    if (place.pixel + kQuad > place.pixels && view.channel_stride != place.pixels) return nullptr;
    Element* const first = base + place.channel * view.channel_stride + place.pixel;
    return reinterpret_cast<uintptr_t>(first) % kAlignment == 0 ? first : nullptr;
}

template <class Element, class Compute>
__device__ __forceinline__ void load_vector(const Element* first, Compute (&out)[kQuad]) {
    if constexpr (sizeof(Element) == 8) {
        const double2 low = reinterpret_cast<const double2*>(first)[0];
        const double2 high = reinterpret_cast<const double2*>(first)[1];
        out[0] = Compute(low.x), out[1] = Compute(low.y), out[2] = Compute(high.x), out[3] = Compute(high.y);
    } else if constexpr (sizeof(Element) == 4) {
        const float4 quad = *reinterpret_cast<const float4*>(first);
        out[0] = Compute(quad.x), out[1] = Compute(quad.y), out[2] = Compute(quad.z), out[3] = Compute(quad.w);
    } else {
        const ushort4 quad = *reinterpret_cast<const ushort4*>(first);
        const uint16_t bits[kQuad] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
        for (int i = 0; i < kQuad; ++i) out[i] = Compute(to_float(Element{bits[i]}));
    }
}

template <class Element>
__device__ __forceinline__ void store_vector(Element* first, const Element (&in)[kQuad]) {
    if constexpr (sizeof(Element) == 8) {
        reinterpret_cast<double2*>(first)[0] = make_double2(in[0], in[1]);
        reinterpret_cast<double2*>(first)[1] = make_double2(in[2], in[3]);
    } else if constexpr (sizeof(Element) == 4) {
        *reinterpret_cast<float4*>(first) = make_float4(in[0], in[1], in[2], in[3]);
    } else {
        *reinterpret_cast<ushort4*>(first) = make_ushort4(in[0].bits, in[1].bits, in[2].bits, in[3].bits);
    }
}

template <class Element, class Compute>
__device__ __forceinline__ void load_quad_as(const ImageView& view, int64_t sample, const QuadPlace& place,
                                             Compute (&out)[kQuad]) {
    const Element* base = static_cast<const Element*>(view.data) + sample * view.sample_stride;
    if (const Element* const first = side_by_side(view, place, base)) return load_vector(first, out);
    for_each_in_quad(view, place, [&](int64_t offset, int i) { out[i] = Compute(to_float(base[offset])); });
}

template <class Element, class Compute>
__device__ __forceinline__ void store_quad_as(const ImageView& view, int64_t sample, const QuadPlace& place,
                                              const Compute (&in)[kQuad]) {
    Element* base = static_cast<Element*>(view.data) + sample * view.sample_stride;
    Element stored[kQuad];
#pragma unroll
    for (int i = 0; i < kQuad; ++i) stored[i] = Store<Element>::from(in[i]);
    if (Element* const first = side_by_side(view, place, base)) return store_vector(first, stored);
    for_each_in_quad(view, place, [&](int64_t offset, int i) { base[offset] = stored[i]; });
}

template <class Compute>
__device__ __forceinline__ void fill_with_nan(Compute (&out)[kQuad]) {
#pragma unroll
    for (int i = 0; i < kQuad; ++i) out[i] = Compute(NAN);
}

// A missing view reads as NaN: a mistake must not pass for a zero.
template <class Compute>
__device__ __forceinline__ void load_quad(const ImageView& view, int64_t sample, const QuadPlace& place,
                                          Compute (&out)[kQuad]) {
    if (view.data == nullptr) return fill_with_nan(out);
    switch (view.dtype) {
        case kFloat64:
            return load_quad_as<double>(view, sample, place, out);
        case kFloat32:
            return load_quad_as<float>(view, sample, place, out);
        case kFloat16:
            return load_quad_as<Half>(view, sample, place, out);
        case kBFloat16:
            return load_quad_as<BFloat16>(view, sample, place, out);
    }
}

template <class Compute>
__device__ __forceinline__ void store_quad(const ImageView& view, int64_t sample, const QuadPlace& place,
                                           const Compute (&in)[kQuad]) {
    switch (view.dtype) {
        case kFloat64:
            return store_quad_as<double>(view, sample, place, in);
        case kFloat32:
            return store_quad_as<float>(view, sample, place, in);
        case kFloat16:
            return store_quad_as<Half>(view, sample, place, in);
        case kBFloat16:
            return store_quad_as<BFloat16>(view, sample, place, in);
    }
}

// The grid of kernels in which block (x, y) takes steps x, x + X, … of samples y, y + Y, …
inline dim3 quad_grid(int64_t samples, int64_t elements, int elements_of_step) {
    // In x as many are enough.
    return dim3(grid_size(elements, elements_of_step, max_grid_y), grid_size(samples, 1, max_grid_y), 1);
}

}  // namespace edm_fast::cuda
