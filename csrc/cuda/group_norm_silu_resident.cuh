// group_norm_silu for images that fit into shared memory: a block owns whole groups of one sample, over all pixels. It
// reads them once into shared memory, takes mean and variance there, one after the other, and writes once; resampling
// finds all neighbours there. Bound by bytes; a single image by how long each of these steps waits for the one before,
// so that what the channels' maps need is fetched along with the image.
#pragma once

#include <algorithm>
#include <numeric>
#include <optional>

#include "async_copy.cuh"
#include "fir.cuh"
#include "group_norm_silu.cuh"
#include "silu.cuh"

namespace edm_fast::cuda {

constexpr int kResidentThreads = 1024;
constexpr int kResidentPacksPerThread = 4;
constexpr int64_t kSmallTile = 18 << 10;

struct ResidentPlan {
    Tiling tiling;
    int threads;
    size_t shared_bytes;
};

// Where a block's shared memory has what; `width` channels are the slab's, rounded up to whole packs.
struct ResidentMemory {
    uint4* images;                             // [pixels, width / kPack]
    float *pre_bias, *center, *gain, *offset;  // [width] each
    float* sums;                               // [warps, width]

    __device__ __forceinline__ ResidentMemory(void* memory, int64_t packs, int width) {
        images = static_cast<uint4*>(memory);
        pre_bias = reinterpret_cast<float*>(images + packs);
        center = pre_bias + width;
        gain = center + width;
        offset = gain + width;
        sums = offset + width;
    }
    static int64_t bytes(int64_t packs, int width, int threads) {
        return 16 * packs + int64_t(sizeof(float)) * (4 + threads / kLanes) * width;
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
inline int resident_threads(int packs, int64_t pixels, bool alone) {
    const int most = alone ? kResidentThreads : kResidentThreads / 2;
    const int lanes = kLanes / (kLanes / packs);  // that a pixel takes, with those that stay idle
    int threads = kResidentThreads / 8;
    while (threads < most && threads * kResidentPacksPerThread < pixels * lanes) threads *= 2;
    return threads;
}

// None if no slab fits. Small tiles are best, of which a single image has more, down to slabs of half a line: on an
// H100 16x16 pixels of 256 channels take 4.9 us instead of 6.5, and a batch of 64 takes 9.0 instead of 9.6; but 32x32
// by sectors of 32 bytes take 44 us instead of 33. Then two blocks should fit on a multiprocessor, so that one writes
// while the other reads; and a sector is better than reading everything twice. N does not come in: the summation order
// must not depend on it.
template <class T>
std::optional<ResidentPlan> plan_resident(const GroupNormSiluArgs& args, int64_t limit) {
    const int64_t channels = args.channels[0] + args.channels[1], pixels = args.height * args.width;
    const int64_t half = limit / 2 - 512;
    const struct {
        int64_t budget, bytes;
    } choices[] = {{kSmallTile, 128}, {kSmallTile, 64}, {half, 128}, {half, 64},
                   {limit, 128},      {limit, 64},      {limit, 32}};
    for (const auto& [budget, bytes] : choices) {
        const int64_t slab = slab_width(channels, args.groups, kPack<T>, bytes);
        const int64_t packs = ceil_div(slab, kPack<T>);
        if (packs > kLanes || pixels > budget) continue;
        const int threads = resident_threads(int(packs), pixels, budget > half);
        const int64_t shared = ResidentMemory::bytes(pixels * packs, int(packs) * kPack<T>, threads);
        if (shared > budget) continue;
        const Tiling tiling = make_tiling(args.samples, channels, pixels, int(slab), int(packs), pixels);
        return ResidentPlan{tiling, threads, size_t(shared)};
    }
    return std::nullopt;
}

// Reads the tile into shared memory, each thread what it alone looks at until the next barrier but for resampling.
template <class T, bool kAligned>
__device__ __forceinline__ void read_resident(const GroupNormSiluArgs& args, const Tiling& tiling, const Tile& tile,
                                              const Place<T>& place, int packs, uint4* mine) {
    constexpr int kBatch = 2;
    const int pixels = int(tiling.pixels);
    const int64_t channel = tile.first_channel + place.offset;
    const NormInput<T, kAligned> input(args, tile.sample, channel, place.count);
    if (kAligned && args.addend == nullptr) {
#pragma unroll 2
        for (int pixel = place.row; pixel < pixels; pixel += place.rows) {
            copy_async(mine + pixel * packs, input.address(pixel));
        }
        return;
    }
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

// What of the channels' maps does not depend on the image: v = (x - (mean - pre_bias)) · rstd · gain + offset.
__device__ __forceinline__ void read_maps(const GroupNormSiluArgs& args, const Tile& tile,
                                          const ResidentMemory& memory) {
#pragma unroll 1
    for (int offset = int(threadIdx.x); offset < tile.channels; offset += int(blockDim.x)) {
        const ChannelMap map = channel_map(args, tile.sample, tile.first_channel + offset, 0.0f, 1.0f);
        memory.pre_bias[offset] = -map.center;
        memory.gain[offset] = map.gain;
        memory.offset[offset] = map.offset;
    }
}

// Sums over the pixels of the block's warps, each of its own: sums[warp, channel].
template <class T>
__device__ __forceinline__ void sum_in_warps(float (&sums)[kPack<T>], const Place<T>& place, int columns, int width,
                                             float* scratch) {
    for (int rows = quotient_of_lanes(kLanes, columns); rows > 1;) {
        const int half = (rows + 1) / 2;
        const bool has_partner = place.warp_row + half < rows;
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) {
            const float other = __shfl_down_sync(0xFFFFFFFFu, sums[i], unsigned(half * columns));
            if (has_partner) sums[i] += other;
        }
        rows = half;
    }
    if (int(threadIdx.x) % kLanes < columns && place.count > 0) {
        float* const row = scratch + int(threadIdx.x) / kLanes * width + place.offset;
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) row[i] = sums[i];
    }
}

// For all threads, a warp for a group at a time: value_of(channel, the sum over all warps), summed over the group's
// channels; then use(group, total), in all lanes.
template <class ValueOf, class Use>
__device__ __forceinline__ void for_each_group(const ResidentMemory& memory, int groups, int group_width, int width,
                                               const ValueOf& value_of, const Use& use) {
    const int lane = int(threadIdx.x) % kLanes, warps = int(blockDim.x) / kLanes;
#pragma unroll 1
    for (int group = int(threadIdx.x) / kLanes; group < groups; group += warps) {
        float total = 0.0f;
#pragma unroll 1
        for (int i = lane; i < group_width; i += kLanes) {
            const int channel = group * group_width + i;
            float sum = 0.0f;
#pragma unroll 4
            for (int warp = 0; warp < warps; ++warp) sum += memory.sums[warp * width + channel];
            total += value_of(channel, sum);
        }
        use(group, __shfl_sync(0xFFFFFFFFu, warp_sum(total), 0));
    }
}

// kPack<T> neighbours, the first of which is aligned.
template <class T>
__device__ __forceinline__ void load_floats(const float* from, float (&to)[kPack<T>]) {
#pragma unroll
    for (int i = 0; i < kPack<T>; i += 4) {
        const float4 four = *reinterpret_cast<const float4*>(from + i);
        to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    }
}

// From the image in shared memory to the map of each channel.
template <class T>
__device__ __forceinline__ void map_resident(const GroupNormSiluArgs& args, const Tiling& tiling, const Tile& tile,
                                             const Place<T>& place, int packs, const uint4* mine,
                                             const ResidentMemory& memory) {
    const int pixels = int(tiling.pixels), width = packs * kPack<T>;
    const int group_width = int(tiling.channels) / int(args.groups), groups = tile.channels / group_width;
    const int64_t first_group = tile.sample * args.groups + int(tile.first_channel) / group_width;
    const int lane = int(threadIdx.x) % kLanes;
    const float count = float(pixels), share = __fdividef(1.0f, count * float(group_width));

    float sums[kPack<T>] = {};
#pragma unroll 2
    for (int pixel = place.row; place.count > 0 && pixel < pixels; pixel += place.rows) {
        float values[kPack<T>];
        unpack<T>(mine[pixel * packs], values);
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) sums[i] += values[i];
    }
    sum_in_warps<T>(sums, place, tiling.columns, width, memory.sums);
    __syncthreads();
    for_each_group(
        memory, groups, group_width, width,
        [&](int channel, float sum) { return sum + count * memory.pre_bias[channel]; },
        [&](int group, float total) {
            const float mean = total * share;
#pragma unroll 1
            for (int i = lane; i < group_width; i += kLanes) {
                const int channel = group * group_width + i;
                memory.center[channel] = mean - memory.pre_bias[channel];
            }
            if (lane == 0 && args.mean != nullptr) args.mean[first_group + group] = mean;
        });
    __syncthreads();

    float center[kPack<T>], squares[kPack<T>] = {};
    load_floats<T>(memory.center + (place.count > 0 ? place.offset : 0), center);
#pragma unroll 2
    for (int pixel = place.row; place.count > 0 && pixel < pixels; pixel += place.rows) {
        float values[kPack<T>];
        unpack<T>(mine[pixel * packs], values);
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) {
            const float distance = values[i] - center[i];
            squares[i] += distance * distance;
        }
    }
    sum_in_warps<T>(squares, place, tiling.columns, width, memory.sums);
    __syncthreads();
    for_each_group(
        memory, groups, group_width, width, [](int, float sum) { return sum; },
        [&](int group, float total) {
            const float rstd = rsqrtf(total * share + args.eps);
#pragma unroll 1
            for (int i = lane; i < group_width; i += kLanes) memory.gain[group * group_width + i] *= rstd;
            if (lane == 0 && args.rstd != nullptr) args.rstd[first_group + group] = rstd;
        });
    __syncthreads();
}

template <class T, bool kAligned, bool kResampled>
__global__ void __launch_bounds__(kResidentThreads, 1)
    group_norm_silu_resident(const __grid_constant__ GroupNormSiluArgs args, const __grid_constant__ Tiling tiling,
                             const __grid_constant__ Fir fir, const __grid_constant__ int64_t first_tile) {
    const int packs = (tiling.slab_channels + kPack<T> - 1) / kPack<T>;
    const int pixels = int(tiling.pixels), out_pixels = kResampled ? fir.out_height * fir.out_width : pixels;
    const ResidentMemory memory(simt::dynamic_shared<uint4>(), pixels * packs, packs * kPack<T>);
    const Tile tile = tile_at(tiling, first_tile + blockIdx.x);
    const Place<T> place(tile, tiling.columns);
    uint4* const mine = memory.images + place.column;
    if (place.count > 0) read_resident<T, kAligned>(args, tiling, tile, place, packs, mine);
    read_maps(args, tile, memory);
    wait_for_copies();
    map_resident<T>(args, tiling, tile, place, packs, mine, memory);

    // Calls raw_of(pixel) for each output pixel of this thread and writes what it returns.
    const auto write = [&](void* images, const auto& raw_of) {
        T* to = static_cast<T*>(images) + (tile.sample * out_pixels + place.row) * tiling.channels +
                tile.first_channel + place.offset;
#pragma unroll 1
        for (int pixel = place.row; place.count > 0 && pixel < out_pixels; pixel += place.rows) {
            store_raw<T, kAligned>(to, place.count, raw_of(pixel));
            to += place.rows * tiling.channels;
        }
    };
    const auto write_up = [&]<int kTaps>(void* images) {
        T* const to =
            static_cast<T*>(images) + tile.sample * out_pixels * tiling.channels + tile.first_channel + place.offset;
        const int columns = up_blocks(fir, fir.out_width), blocks = columns * up_blocks(fir, fir.out_height);
#pragma unroll 1
        for (int block = place.row; place.count > 0 && block < blocks; block += place.rows) {
            const int block_y = int(unsigned(block) / unsigned(columns));
            gather_four<T, kTaps>(
                fir, block_y, block - block_y * columns, [&](int64_t pixel) { return mine[int(pixel) * packs]; },
                [&](int out_y, int out_x, const uint4& raw) {
                    const int64_t pixel = out_y * fir.out_width + out_x;
                    store_raw<T, kAligned>(to + pixel * tiling.channels, place.count, raw);
                });
        }
    };
    const auto write_down = [&]<int kTaps>(void* images) {
        constexpr int kOutputs = sizeof(T) == sizeof(float) ? 1 : kTaps / 2;
        T* const to =
            static_cast<T*>(images) + tile.sample * out_pixels * tiling.channels + tile.first_channel + place.offset;
        const int parts = (fir.out_height + kOutputs - 1) / kOutputs * fir.out_width;
#pragma unroll 1
        for (int part = place.row; place.count > 0 && part < parts; part += place.rows) {
            const int row = int(unsigned(part) / unsigned(fir.out_width)), out_x = part - row * fir.out_width;
            gather_column<T, kTaps, kOutputs>(
                fir, row * kOutputs, out_x, [&](int64_t pixel) { return mine[int(pixel) * packs]; },
                [&](int out_y, const uint4& raw) {
                    const int64_t pixel = out_y * fir.out_width + out_x;
                    store_raw<T, kAligned>(to + pixel * tiling.channels, place.count, raw);
                });
        }
    };
    const auto write_resampled = [&](void* images) {
        if (fir.taps == 2)
            return fir.up ? write_up.template operator()<2>(images) : write_down.template operator()<2>(images);
        if (fir.taps == 4)
            return fir.up ? write_up.template operator()<4>(images) : write_down.template operator()<4>(images);
        write(images, [&](int pixel) {
            float sum[kPack<T>];
            gather(fir, pixel, sum, [&](int64_t neighbour, float (&values)[kPack<T>]) {
                unpack<T>(mine[int(neighbour) * packs], values);
            });
            return pack<T>(sum);
        });
    };
    if (args.plain != nullptr) {
        if constexpr (kResampled) {
            write_resampled(args.plain);
            __syncthreads();
        } else {
            write(args.plain, [&](int pixel) { return mine[pixel * packs]; });
        }
    }
    // Only now, since registers are scarce.
    const int offset = place.count > 0 ? place.offset : 0;
    PackMap<T> map;
    load_floats<T>(memory.center + offset, map.center);
    load_floats<T>(memory.gain + offset, map.gain);
    load_floats<T>(memory.offset + offset, map.offset);
    const auto activated = [&](int pixel) {
        float values[kPack<T>];
        unpack<T>(mine[pixel * packs], values);
        map.apply(values);
        if (args.silu) {
#pragma unroll
            for (int i = 0; i < kPack<T>; ++i) values[i] = silu<T>(values[i]);
        }
        return pack<T>(values);
    };
    if constexpr (kResampled) {
#pragma unroll 1
        for (int pixel = place.row; place.count > 0 && pixel < pixels; pixel += place.rows) {
            mine[pixel * packs] = activated(pixel);
        }
        __syncthreads();
        write_resampled(args.out);
    } else {
        write(args.out, activated);
    }
}

}  // namespace edm_fast::cuda
