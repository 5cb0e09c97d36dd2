// RGB images by threads that take quads of one channel each, whose block moves what lies channels-last in the order of
// memory: by accesses of 16 bytes (8 for 16-bit elements) side by side, through shared memory. By itself each thread
// would move such elements one by one, and write every sector of 32 bytes a dozen times.
#pragma once

#include "edm_fast/image_view.h"
#include "image_io.cuh"
#include "launch.cuh"
#include "simt.h"
#include "tile.cuh"

namespace edm_fast::cuda {

// Three warps have a tile of an RGB image: one for each channel of 128 neighbouring pixels.
constexpr int kRgb = 3;
constexpr int kTilePixels = kLanes * kQuad;

// How blocks of kThreads threads take the quads of a sample, step by step: for kPlanes = 1 in the order of elements,
// each thread by itself, for kPlanes = 3 (see planes_of) by tiles, which need all threads of a block. A step is an
// element, the thread's first one, or the block's first pixel.
template <int kPlanes, int kThreads>
struct QuadSteps {
    static_assert(kPlanes == 1 || (kPlanes == kRgb && kThreads % (kRgb * kLanes) == 0));

    // Of a plane in a step.
    static constexpr int kElements = kThreads / kPlanes * kQuad;
    // The shared memory of read_quad and write_quad.
    static constexpr int kTileFloats = kPlanes == 1 ? 0 : kThreads * kQuad;

    EDM_FAST_HOST_DEVICE static int64_t end(int64_t channels, int64_t pixels) {
        return kPlanes == 1 ? channels * pixels : pixels;
    }

    // The first step of a block.
    __device__ __forceinline__ static int64_t begin(int64_t block) {
        return block * kElements + (kPlanes == 1 ? threadIdx.x * kQuad : 0);
    }

    // The thread's quad. It has no elements past the end.
    __device__ __forceinline__ static QuadPlace place(int64_t step, int64_t channels, int64_t pixels) {
        if constexpr (kPlanes == 1) {
            return quad_place(step, channels * pixels, pixels);
        } else {
            const int warp = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
            QuadPlace place;
            place.pixels = pixels;
            place.channel = warp % kRgb;
            place.pixel = step + (warp / kRgb * kTilePixels + lane * kQuad);
            place.first = place.channel * pixels + place.pixel;
            place.count = place.pixel < pixels ? kQuad : 0;
            return place;
        }
    }
};

// What a thread moves of its tile in the order of memory: elements first … first + 3 of it. In shared memory the tile's
// channels lie behind each other, so that `first` is also where the thread's own quad begins there.
struct TilePart {
    int first;
    int64_t element;  // of the sample: the same in the order of a channels-last image
    bool exists;
    float* tiles;

    __device__ __forceinline__ TilePart(const QuadPlace& place, float* shared) : tiles(shared) {
        const int lane = int(threadIdx.x) % kLanes;
        first = int(place.channel) * kTilePixels + lane * kQuad;
        element = kRgb * (place.pixel - lane * kQuad) + first;
        exists = element < kRgb * place.pixels;
    }
    __device__ __forceinline__ float* tile() const {
        return tiles + int(threadIdx.x) / (kRgb * kLanes) * (kRgb * kTilePixels);
    }
    __device__ __forceinline__ float& at(int i) const {
        return tile()[(first + i) % kRgb * kTilePixels + (first + i) / kRgb];
    }
    __device__ __forceinline__ float4& own() const { return *reinterpret_cast<float4*>(tile() + first); }
};

// Whether a block moves the view in the order of memory. The same for all of its threads.
__device__ __forceinline__ bool goes_by_tiles(const ImageView& view, int64_t sample) {
    if (!is_interleaved_rgb(view) || view.dtype == kFloat64) return false;
    const int64_t size = view.dtype == kFloat32 ? 4 : 2;
    return (reinterpret_cast<uintptr_t>(view.data) + uintptr_t(sample * view.sample_stride * size)) %
               uintptr_t(kQuad * size) ==
           0;
}

// Calls move(pointer to element `element` of the sample), for the dtypes that go by tiles.
template <class Move>
__device__ __forceinline__ void with_tile_pointer(const ImageView& view, int64_t sample, int64_t element,
                                                  const Move& move) {
    const int64_t offset = sample * view.sample_stride + element;
    if (view.dtype == kFloat32) {
        move(static_cast<float*>(view.data) + offset);
    } else if (view.dtype == kFloat16) {
        move(static_cast<Half*>(view.data) + offset);
    } else {
        move(static_cast<BFloat16*>(view.data) + offset);
    }
}

// load_quad by all threads of a block together, in two halves, so that several views can be on their way at once:
// fetch_quad reads what the thread moves, exchange_quad makes it the thread's own, with QuadSteps' shared memory.
template <int kPlanes, class Compute>
__device__ __forceinline__ void fetch_quad(const ImageView& view, int64_t sample, const QuadPlace& place,
                                           Compute (&moved)[kQuad]) {
    if constexpr (kPlanes == kRgb) {
        if (goes_by_tiles(view, sample)) {
            const TilePart part(place, nullptr);
            if (!part.exists) return;
            with_tile_pointer(view, sample, part.element, [&](const auto* first) { load_vector(first, moved); });
            return;
        }
    }
    load_quad(view, sample, place, moved);
}

template <int kPlanes, class Compute>
__device__ __forceinline__ void exchange_quad(const ImageView& view, int64_t sample, const QuadPlace& place,
                                              float* tiles, Compute (&quad)[kQuad]) {
    if constexpr (kPlanes == kRgb) {
        if (!goes_by_tiles(view, sample)) return;
        const TilePart part(place, tiles);
        __syncthreads();
        if (part.exists) {
#pragma unroll
            for (int i = 0; i < kQuad; ++i) part.at(i) = float(quad[i]);
        }
        __syncthreads();
        const float4 own = place.count != 0 ? part.own() : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        quad[0] = Compute(own.x), quad[1] = Compute(own.y), quad[2] = Compute(own.z), quad[3] = Compute(own.w);
    }
}

template <int kPlanes, class Compute>
__device__ __forceinline__ void read_quad(const ImageView& view, int64_t sample, const QuadPlace& place, float* tiles,
                                          Compute (&out)[kQuad]) {
    fetch_quad<kPlanes>(view, sample, place, out);
    exchange_quad<kPlanes>(view, sample, place, tiles, out);
}

// store_quad likewise. A double goes to fewer bits by way of float, as Store's does.
template <int kPlanes, class Compute>
__device__ __forceinline__ void write_quad(const ImageView& view, int64_t sample, const QuadPlace& place, float* tiles,
                                           const Compute (&in)[kQuad]) {
    if constexpr (kPlanes == kRgb) {
        if (goes_by_tiles(view, sample)) {
            const TilePart part(place, tiles);
            __syncthreads();
            if (place.count != 0) part.own() = make_float4(float(in[0]), float(in[1]), float(in[2]), float(in[3]));
            __syncthreads();
            if (!part.exists) return;
            with_tile_pointer(view, sample, part.element, [&]<class Element>(Element* first) {
                Element moved[kQuad];
#pragma unroll
                for (int i = 0; i < kQuad; ++i) moved[i] = Store<Element>::from(part.at(i));
                store_vector(first, moved);
            });
            return;
        }
    }
    store_quad(view, sample, place, in);
}

}  // namespace edm_fast::cuda
