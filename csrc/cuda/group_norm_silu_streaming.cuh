// group_norm_silu for images of any size, in two kernels: a block of the first takes the moments of a slab of channels
// over a chunk of pixels, a block of the second joins what it needs of them and makes a chunk of the output. With the
// moments given the second is all there is. Bound by bytes; without resampling x is read twice.
#pragma once

#include "fir.cuh"
#include "group_norm_silu.cuh"
#include "silu.cuh"

namespace edm_fast::cuda {

constexpr int kStreamingThreads = 256;
constexpr int kStreamingPacksPerThread = 8;
constexpr int64_t kMaxChunks = 32;
// About as many as a GPU has multiprocessors.
constexpr int64_t kManyBlocks = 128;

// Each channel's mean and biased variance over each chunk of the pixels: [N, chunks, Ci, 2] for source i.
struct ChunkMoments {
    const float* data[2];
    int64_t channels[2];
    int64_t pixels, chunk_pixels, chunks;

    __device__ __forceinline__ Moments at(int64_t sample, int64_t channel, int64_t chunk) const {
        const bool second = channel >= channels[0];
        const int64_t inside = second ? channel - channels[0] : channel;
        const float* const entry = data[second] + 2 * ((sample * chunks + chunk) * channels[second] + inside);
        const float count = float(min(chunk_pixels, pixels - chunk * chunk_pixels));
        return {count, entry[0], entry[1] * count};
    }
};

template <class T, bool kAligned>
__global__ void __launch_bounds__(kStreamingThreads, 2)
    group_norm_silu_moments(const __grid_constant__ GroupNormSiluArgs args, const __grid_constant__ Tiling tiling,
                            float* moments) {
    constexpr int kBatch = 4;
    float* const scratch = simt::dynamic_shared<float>();
    for (int64_t index = blockIdx.x; index < tiling.tiles; index += gridDim.x) {
        const Tile tile = tile_at(tiling, index);
        const Place<T> place(tiling, tile);
        ShiftedSums<kPack<T>> sums;
        if (place.count > 0) {
            const int64_t channel = tile.first_channel + place.offset;
            const NormInput<T, kAligned> input(args, tile.sample, channel, place.count);
            T* const sum = args.addend == nullptr
                               ? nullptr
                               : static_cast<T*>(args.sum) + tile.sample * tiling.pixels * tiling.channels + channel;
            for (int64_t first = tile.first_pixel + place.row; first < tile.end_pixel; first += kBatch * place.rows) {
                input.template batch<kBatch>(
                    first, place.rows, tile.end_pixel, [&](int, int64_t pixel, const uint4& raw) {
                        if (sum != nullptr) store_raw<T, kAligned>(sum + pixel * tiling.channels, place.count, raw);
                        float values[kPack<T>];
                        unpack<T>(raw, values);
                        sums.add(values);
                    });
            }
        }
        const int64_t chunk = quotient(tile.first_pixel, tiling.chunk_pixels);
        float* const here =
            moments + 2 * ((tile.sample * tiling.chunks + chunk) * tiling.channels + tile.first_channel);
        reduce_moments<T>(sums, tiling, tile, place, tiling.slab_channels, scratch,
                          [&](int channel, const Moments& total) {
                              here[2 * channel] = total.mean;
                              here[2 * channel + 1] = __fdividef(total.m2, total.count);
                          });
        __syncthreads();
    }
}

// tiling: of the output's pixels.
template <class T, bool kAligned, bool kResampled>
__global__ void __launch_bounds__(kStreamingThreads, 2)
    group_norm_silu_apply(const __grid_constant__ GroupNormSiluArgs args, const __grid_constant__ ChunkMoments moments,
                          const __grid_constant__ Tiling tiling, const __grid_constant__ Fir fir) {
    float* const group_mean = simt::dynamic_shared<float>();
    float* const group_rstd = group_mean + tiling.slab_channels;
    const int64_t width = tiling.channels / args.groups;
    for (int64_t index = blockIdx.x; index < tiling.tiles; index += gridDim.x) {
        const Tile tile = tile_at(tiling, index);
        const Place<T> place(tiling, tile);
        const int64_t channel = tile.first_channel + place.offset;
        const GroupRange groups(width, tile);
        group_statistics(
            args, groups.count, width * moments.chunks,
            [&](int group, int64_t i) {
                const int64_t chunk = quotient(i, width);
                const int64_t of = (groups.first + group) * width + i - chunk * width;
                Moments part = moments.at(tile.sample, of, chunk);
                part.mean += pre_bias_of(args, tile.sample, of);
                return part;
            },
            group_mean, group_rstd);
        __syncthreads();
        // Of the blocks that share a group, the one with its first channel and the first pixels writes the statistics.
        for (int i = int(threadIdx.x); tile.first_pixel == 0 && i < groups.count; i += int(blockDim.x)) {
            if ((groups.first + i) * width < tile.first_channel) continue;
            const int64_t entry = tile.sample * args.groups + groups.first + i;
            if (args.mean != nullptr) args.mean[entry] = group_mean[i];
            if (args.rstd != nullptr) args.rstd[entry] = group_rstd[i];
        }
        if (place.count > 0) {
            PackMap<T> map;
            map.fill(place.count, [&](int i) {
                const int group = int(quotient(channel + i, width) - groups.first);
                return channel_map(args, tile.sample, channel + i, group_mean[group], group_rstd[group]);
            });
            const NormInput<T, kAligned> input(args, tile.sample, channel, place.count);
            const auto activate = [&](float (&values)[kPack<T>]) {
                map.apply(values);
                if (args.silu) {
#pragma unroll
                    for (int i = 0; i < kPack<T>; ++i) values[i] = silu<T>(values[i]);
                }
            };
            const int64_t out_first = tile.sample * tiling.pixels * tiling.channels + channel;
            const auto write = [&](void* images, int64_t pixel, const uint4& raw) {
                store_raw<T, kAligned>(static_cast<T*>(images) + out_first + pixel * tiling.channels, place.count, raw);
            };
            if constexpr (kResampled) {
                for (int64_t pixel = tile.first_pixel + place.row; pixel < tile.end_pixel; pixel += place.rows) {
                    float sum[kPack<T>];
                    gather(fir, pixel, sum, [&](int64_t neighbour, float (&values)[kPack<T>]) {
                        unpack<T>(input.load(neighbour), values);
                        activate(values);
                    });
                    write(args.out, pixel, pack<T>(sum));
                    if (args.plain != nullptr) {
                        gather(fir, pixel, sum, [&](int64_t neighbour, float (&values)[kPack<T>]) {
                            unpack<T>(input.load(neighbour), values);
                        });
                        write(args.plain, pixel, pack<T>(sum));
                    }
                }
            } else {
                for (int64_t first = tile.first_pixel + place.row; first < tile.end_pixel; first += 4 * place.rows) {
                    input.template batch<4>(first, place.rows, tile.end_pixel,
                                            [&](int, int64_t pixel, const uint4& raw) {
                                                if (args.plain != nullptr) write(args.plain, pixel, raw);
                                                float values[kPack<T>];
                                                unpack<T>(raw, values);
                                                activate(values);
                                                write(args.out, pixel, pack<T>(values));
                                            });
                }
            }
        }
        __syncthreads();
    }
}

}  // namespace edm_fast::cuda
