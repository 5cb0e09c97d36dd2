// residual: a block owns a slab of channels of one sample: a chunk of its pixels, or all of them if their moments are
// wanted, which then stay inside the block. Bound by bytes.
#include "edm_fast/residual.h"
#include "launch.cuh"
#include "packed.cuh"
#include "reduce.cuh"
#include "simt.h"
#include "tile.cuh"

namespace edm_fast::cuda {

namespace {

constexpr int kThreads = 256;
// With moments slabs are narrower, so that a single sample still has enough blocks.
constexpr int kMomentsPacks = 4;
constexpr int kPacksPerThread = 8;
constexpr int kBatch = 4;

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads, 2)
    residual_kernel(const __grid_constant__ ResidualArgs args, const __grid_constant__ Tiling tiling) {
    constexpr int kChannels = kPack<T>;
    float* const scratch = simt::dynamic_shared<float>();
    for (int64_t index = blockIdx.x; index < tiling.tiles; index += gridDim.x) {
        const Tile tile = tile_at(tiling, index);
        const Place<T> place(tiling, tile);
        const int64_t channel = tile.first_channel + place.offset;
        const int64_t first = tile.sample * args.pixels;
        const T* const a = static_cast<const T*>(args.a) + first * args.channels + channel;
        const T* const b = static_cast<const T*>(args.b) + (args.b != nullptr ? first * args.channels + channel : 0);
        T* const out = static_cast<T*>(args.out) + first * args.out_stride + channel;
        float bias[kChannels];
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
            bias[i] = args.bias != nullptr && i < place.count ? args.bias[channel + i] : 0.0f;
        }
        ShiftedSums<kChannels> sums;
        // Several loads are under way before the first is used.
        for (int64_t batch = tile.first_pixel + place.row; place.count > 0 && batch < tile.end_pixel;
             batch += kBatch * place.rows) {
            uint4 raw_a[kBatch], raw_b[kBatch];
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                const int64_t pixel = batch + i * place.rows;
                if (pixel >= tile.end_pixel) break;
                raw_a[i] = load_raw<T, kAligned>(a + pixel * args.channels, place.count);
                if (args.b != nullptr) raw_b[i] = load_raw<T, kAligned>(b + pixel * args.channels, place.count);
            }
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                const int64_t pixel = batch + i * place.rows;
                if (pixel >= tile.end_pixel) break;
                float values[kChannels], addends[kChannels];
                unpack<T>(raw_a[i], values);
                if (args.b != nullptr) {
                    unpack<T>(raw_b[i], addends);
#pragma unroll
                    for (int j = 0; j < kChannels; ++j) values[j] += addends[j];
                }
#pragma unroll
                for (int j = 0; j < kChannels; ++j) values[j] = (values[j] + bias[j]) * args.scale;
                const uint4 rounded = pack<T>(values);
                store_raw<T, kAligned>(out + pixel * args.out_stride, place.count, rounded);
                if (args.moments != nullptr) {
                    unpack<T>(rounded, values);
                    sums.add(values);
                }
            }
        }
        if (args.moments == nullptr) continue;
        float* const moments = args.moments + 2 * (tile.sample * args.channels + tile.first_channel);
        reduce_moments<T>(sums, tiling, tile, place, tiling.slab_channels, scratch,
                          [&](int offset, const Moments& total) {
                              moments[2 * offset] = total.mean;
                              moments[2 * offset + 1] = __fdividef(total.m2, total.count);
                          });
        __syncthreads();
    }
}

}  // namespace

void residual(const ResidualArgs& args, int device, void* stream) {
    if (args.samples == 0 || args.pixels == 0 || args.channels == 0) return;
    DeviceGuard guard(device);
    const auto aligned = [&]<class T>() {
        return aligned_for_packs<T>({args.a, args.b, args.out}, {args.channels, args.out_stride});
    };
    for_storage(args.dtype, aligned, [&]<class T, bool kAligned>() {
        const bool moments = args.moments != nullptr;
        const int packs = moments ? kMomentsPacks : kLinePacks;
        const int64_t chunk =
            moments ? args.pixels : kPacksPerThread * kThreads / column_count(ceil_div(args.channels, kPack<T>), packs);
        const Tiling tiling = line_tiling<T>(args.samples, args.channels, args.pixels, chunk, packs);
        const size_t shared = moments ? sizeof(float) * moments_scratch(kThreads, tiling.slab_channels) : 0;
        EDM_FAST_LAUNCH((residual_kernel<T, kAligned>), dim3(grid_size(tiling.tiles, 1)), dim3(kThreads), shared,
                        stream, args, tiling);
    });
}

}  // namespace edm_fast::cuda
