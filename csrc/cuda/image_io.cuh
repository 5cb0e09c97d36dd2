// Four consecutive elements of one sample, from any layout and dtype, and back. Four, because that is one Philox block.
#pragma once

#include "edm_fast/image_view.h"
#include "launch.cuh"
#include "simt.h"

namespace edm_fast::cuda {

constexpr int kQuad = 4;

// Where the elements first … first + 3 of a sample lie, for a view of [N, C, P]. Elements past the end are not touched.
struct QuadPlace {
    int64_t channel, pixel, pixels;
    int count;
};

__device__ __forceinline__ QuadPlace quad_place(int64_t first, int64_t elements, int64_t pixels) {
    QuadPlace place;
    place.pixels = pixels;
    place.count = elements - first < kQuad ? int(elements - first) : kQuad;
    if (elements <= int64_t(0xFFFFFFFFu)) {  // a 32-bit division is several times cheaper
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

template <class Element, class Compute>
__device__ __forceinline__ void load_quad_as(const ImageView& view, int64_t sample, const QuadPlace& place,
                                             Compute (&out)[kQuad]) {
    const Element* base = static_cast<const Element*>(view.data) + sample * view.sample_stride;
    for_each_in_quad(view, place, [&](int64_t offset, int i) { out[i] = Compute(to_float(base[offset])); });
}

template <class Element, class Compute>
__device__ __forceinline__ void store_quad_as(const ImageView& view, int64_t sample, const QuadPlace& place,
                                              const Compute (&in)[kQuad]) {
    Element* base = static_cast<Element*>(view.data) + sample * view.sample_stride;
    for_each_in_quad(view, place, [&](int64_t offset, int i) { base[offset] = Store<Element>::from(in[i]); });
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

// The grid of kernels in which thread (x, y) takes quads x, x + X, … of samples y, y + Y, …
inline dim3 quad_grid(int64_t samples, int64_t elements, int threads) {
    constexpr int64_t kMaxGrid = 65535;  // in y; in x it is enough
    return dim3(grid_size(ceil_div(elements, kQuad), threads, kMaxGrid), grid_size(samples, 1, kMaxGrid), 1);
}

}  // namespace edm_fast::cuda
