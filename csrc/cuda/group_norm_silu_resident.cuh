// group_norm_silu for images that fit into shared memory: a block owns whole groups of one sample, over all pixels. It
// reads them once into shared memory, takes their statistics on the way, and writes once; resampling finds all
// neighbours there. Bound by bytes.
#pragma once

#include <algorithm>
#include <numeric>
#include <optional>

#include "fir.cuh"
#include "group_norm_silu.cuh"
#include "silu.cuh"

namespace edm_fast::cuda {

constexpr int kResidentThreads = 1024;
constexpr int kResidentPacksPerThread = 4;

struct ResidentPlan {
    Tiling tiling;
    int threads;
    size_t shared_bytes;
};

// Where a block's shared memory has what; `width` channels are the slab's, rounded up to whole packs.
struct ResidentMemory {
    uint4* images;                  // [pixels, width / kPack]
    float *center, *gain, *offset;  // [width] each; so are the next four
    float *channel_mean, *channel_m2, *group_mean, *group_rstd;
    float* scratch;

    static constexpr int kRows = 7;

    __device__ __forceinline__ ResidentMemory(void* memory, int64_t packs, int width) {
        images = static_cast<uint4*>(memory);
        center = reinterpret_cast<float*>(images + packs);
        gain = center + width;
        offset = gain + width;
        channel_mean = offset + width;
        channel_m2 = channel_mean + width;
        group_mean = channel_m2 + width;
        group_rstd = group_mean + width;
        scratch = group_rstd + width;
    }
    static int64_t bytes(int64_t packs, int width, int threads) {
        return 16 * packs + int64_t(sizeof(float)) * (kRows * width + moments_scratch(threads, width));
    }
};

// A slab is whole groups and, where the channel count is whole packs, whole packs; and it is at least `bytes` wide if
// there are so many channels. Slabs are made equally wide.
inline int64_t slab_width(int64_t channels, int64_t groups, int pack, int64_t bytes) {
    const int64_t group = channels / groups;
    const int64_t unit = channels % pack == 0 ? std::lcm(group, int64_t(pack)) : group;
    const int64_t units = channels / unit;
    const int64_t wanted = ceil_div(bytes * pack / 16, unit);
    const int64_t slabs = std::max<int64_t>(1, units / wanted);
    return ceil_div(units, slabs) * unit;
}

// A few packs for each thread, in blocks of which several share a multiprocessor, but for images that take one alone.
inline int resident_threads(int columns, int64_t pixels, bool alone) {
    const int most = alone ? kResidentThreads : kResidentThreads / 2;
    int threads = std::max(kResidentThreads / 8, columns);
    while (threads < most && threads * kResidentPacksPerThread < pixels * columns) threads *= 2;
    return threads;
}

// None if no slab fits. Two blocks should fit on a multiprocessor, so that one writes while the other reads; then lines
// of 128 bytes are better than half lines, and a sector of 32 is better than reading everything twice, though it leaves
// few blocks for a single image. N does not come in: the summation order must not depend on it.
template <class T>
std::optional<ResidentPlan> plan_resident(const GroupNormSiluArgs& args, int64_t limit) {
    const int64_t channels = args.channels[0] + args.channels[1], pixels = args.height * args.width;
    const int64_t half = limit / 2 - 512;
    const struct {
        int64_t budget, bytes;
    } choices[] = {{half, 128}, {half, 64}, {limit, 128}, {limit, 64}, {limit, 32}};
    for (const auto& [budget, bytes] : choices) {
        const int64_t slab = slab_width(channels, args.groups, kPack<T>, bytes);
        const int64_t packs = ceil_div(slab, kPack<T>);
        if (packs > kLanes || pixels > budget) continue;
        const int columns = column_count(packs), threads = resident_threads(columns, pixels, budget > half);
        const int64_t shared = ResidentMemory::bytes(pixels * packs, int(packs) * kPack<T>, threads);
        if (shared > budget) continue;
        const Tiling tiling = make_tiling(args.samples, channels, pixels, int(slab), columns, pixels);
        return ResidentPlan{tiling, threads, size_t(shared)};
    }
    return std::nullopt;
}

// Reads the tile into shared memory and takes its channels' moments.
template <class T, bool kAligned>
__device__ __forceinline__ void read_resident(const GroupNormSiluArgs& args, const Tiling& tiling, const Tile& tile,
                                              const Place<T>& place, int packs, const ResidentMemory& memory) {
    constexpr int kBatch = 2;
    ShiftedSums<kPack<T>> sums;
    if (place.count > 0) {
        const int pixels = int(tiling.pixels);
        uint4* const mine = memory.images + place.column;
        const int64_t channel = tile.first_channel + place.offset;
        const NormInput<T, kAligned> input(args, tile.sample, channel, place.count);
        if (kAligned && args.addend == nullptr) {
#pragma unroll 2
            for (int pixel = place.row; pixel < pixels; pixel += place.rows) {
                copy_async(mine + pixel * packs, input.address(pixel));
            }
            wait_for_copies();
        } else {
            T* const sum = args.addend == nullptr
                               ? nullptr
                               : static_cast<T*>(args.sum) + tile.sample * tiling.pixels * tiling.channels + channel;
#pragma unroll 1
            for (int first = place.row; first < pixels; first += kBatch * place.rows) {
                input.template batch<kBatch>(first, place.rows, pixels, [&](int, int64_t pixel, const uint4& raw) {
                    mine[pixel * packs] = raw;
                    if (sum != nullptr) store_raw<T, kAligned>(sum + pixel * tiling.channels, place.count, raw);
                });
            }
        }
        // Each thread looks at what it copied itself.
#pragma unroll 2
        for (int pixel = place.row; pixel < pixels; pixel += place.rows) {
            float values[kPack<T>];
            unpack<T>(mine[pixel * packs], values);
            sums.add(values);
        }
    }
    reduce_moments<T>(sums, tiling, tile, place, packs * kPack<T>, memory.scratch,
                      [&](int channel, const Moments& moments) {
                          memory.channel_mean[channel] = moments.mean;
                          memory.channel_m2[channel] = moments.m2;
                      });
    __syncthreads();
}

// From the channels' moments to the map of each channel.
__device__ __forceinline__ void map_resident(const GroupNormSiluArgs& args, const Tiling& tiling, const Tile& tile,
                                             const ResidentMemory& memory) {
    const int width = int(quotient(tiling.channels, args.groups));
    const int groups = tile.channels / width;
    group_statistics(
        args, groups, width,
        [&](int group, int i) {
            const int offset = group * width + i;
            const float mean =
                memory.channel_mean[offset] + pre_bias_of(args, tile.sample, tile.first_channel + offset);
            return Moments{float(tiling.pixels), mean, memory.channel_m2[offset]};
        },
        memory.group_mean, memory.group_rstd);
    __syncthreads();
    for (int offset = int(threadIdx.x); offset < tile.channels; offset += int(blockDim.x)) {
        const int group = offset / width;
        const float mean = memory.group_mean[group], rstd = memory.group_rstd[group];
        const ChannelMap map = channel_map(args, tile.sample, tile.first_channel + offset, mean, rstd);
        memory.center[offset] = map.center;
        memory.gain[offset] = map.gain;
        memory.offset[offset] = map.offset;
        if (offset == group * width) {
            const int64_t place = tile.sample * args.groups + quotient(tile.first_channel, width) + group;
            if (args.mean != nullptr) args.mean[place] = mean;
            if (args.rstd != nullptr) args.rstd[place] = rstd;
        }
    }
    __syncthreads();
}

template <class T, bool kAligned, bool kResampled>
__global__ void __launch_bounds__(kResidentThreads, 1)
    group_norm_silu_resident(const __grid_constant__ GroupNormSiluArgs args, const __grid_constant__ Tiling tiling,
                             const __grid_constant__ Fir fir) {
    const int packs = (tiling.slab_channels + kPack<T> - 1) / kPack<T>;
    const ResidentMemory memory(simt::dynamic_shared<uint4>(), tiling.pixels * packs, packs * kPack<T>);
    for (int64_t index = blockIdx.x; index < tiling.tiles; index += gridDim.x) {
        const Tile tile = tile_at(tiling, index);
        const Place<T> place(tiling, tile);
        read_resident<T, kAligned>(args, tiling, tile, place, packs, memory);
        map_resident(args, tiling, tile, memory);

        const auto activate = [&](const uint4& raw, const PackMap<T>& map) {
            float values[kPack<T>];
            unpack<T>(raw, values);
            map.apply(values);
            if (args.silu) {
#pragma unroll
                for (int i = 0; i < kPack<T>; ++i) values[i] = silu<T>(values[i]);
            }
            return pack<T>(values);
        };
        uint4* const mine = memory.images + place.column;
        const int pixels = int(tiling.pixels), out_pixels = kResampled ? fir.out_height * fir.out_width : pixels;
        const int64_t first =
            (tile.sample * out_pixels + place.row) * tiling.channels + tile.first_channel + place.offset;
        // Calls raw_of(pixel) for each output pixel of this thread and writes what it returns.
        const auto write = [&](void* images, const auto& raw_of) {
            T* to = static_cast<T*>(images) + first;
            for (int pixel = place.row; place.count > 0 && pixel < out_pixels; pixel += place.rows) {
                store_raw<T, kAligned>(to, place.count, raw_of(pixel));
                to += place.rows * tiling.channels;
            }
        };
        const auto resampled = [&](int pixel) {
            float sum[kPack<T>];
            gather(fir, pixel, sum, [&](int64_t neighbour, float (&values)[kPack<T>]) {
                unpack<T>(mine[int(neighbour) * packs], values);
            });
            return pack<T>(sum);
        };
        if (args.plain != nullptr) {
            if constexpr (kResampled) {
                write(args.plain, resampled);
                __syncthreads();
            } else {
                write(args.plain, [&](int pixel) { return mine[pixel * packs]; });
            }
        }
        // Only now, since registers are scarce.
        PackMap<T> map;
        map.fill(place.count, [&](int i) {
            const int offset = place.offset + i;
            return ChannelMap{memory.center[offset], memory.gain[offset], memory.offset[offset]};
        });
        if constexpr (kResampled) {
            for (int pixel = place.row; place.count > 0 && pixel < pixels; pixel += place.rows) {
                mine[pixel * packs] = activate(mine[pixel * packs], map);
            }
            __syncthreads();
            write(args.out, resampled);
        } else {
            write(args.out, [&](int pixel) { return activate(mine[pixel * packs], map); });
        }
        // The next tile takes the place of this one.
        __syncthreads();
    }
}

}  // namespace edm_fast::cuda
