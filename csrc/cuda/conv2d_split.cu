// conv2d_split: a block multiplies one part of one tile's sum through a ring of stages in shared memory. Where there is
// more than one part, each is left in memory, and the block that finds all others done adds them up and goes on: nobody
// waits for anybody.
#include <algorithm>

#include "conv2d_split.cuh"
#include "edm_fast/conv2d_split.h"
#include "launch.cuh"
#include "reduce.cuh"

namespace edm_fast::cuda {

namespace {

// Of the tile in float32, in shared memory; whole packs, and rows that begin in different banks.
constexpr int kStagedStride = kSplitSide + 8;
constexpr int kStagedFloats = kSplitSide * kStagedStride;
constexpr int kScratchFloats = int(moments_scratch(kSplitThreads, kSplitSide));
constexpr size_t kSharedBytes = sizeof(uint4) * kSplitStages * kSplitStagePacks;
static_assert(kSharedBytes >= sizeof(float) * (kStagedFloats + kScratchFloats) + sizeof(uint32_t));

// The products of steps [first, end) of a tile's sum.
template <class T>
__device__ __forceinline__ void sum_steps(const Conv2dSplitArgs& args, const SplitPlan& plan, const Tile& tile,
                                          int first, int end, uint4* stages, SplitSums& sums) {
    SplitLoader<T> loader(args, plan, tile, first);
    int loaded = first;
#pragma unroll 1
    for (; loaded < first + kSplitStages - 1; ++loaded) {
        if (loaded < end) loader.load(stages + (loaded - first) * kSplitStagePacks);
        commit_copies();
    }
    int stage = 0;
#pragma unroll 1
    for (int step = first; step < end; ++step, ++loaded) {
        wait_for_groups<kSplitStages - 2>();
        __syncthreads();
        // All have used the stage before this one.
        if (loaded < end) loader.load(stages + (stage == 0 ? kSplitStages - 1 : stage - 1) * kSplitStagePacks);
        commit_copies();
        sums.add<T>(stages + stage * kSplitStagePacks);
        stage = stage + 1 == kSplitStages ? 0 : stage + 1;
    }
    wait_for_copies();
}

// Leaves this part in memory. True in the block that comes last, which then has the sum of all parts; `flag` lies in
// shared memory.
__device__ __forceinline__ bool join_parts(const Conv2dSplitArgs& args, const SplitPlan& plan, int64_t tile, int part,
                                           SplitSums& sums, uint32_t* flag) {
    float4* const parts =
        reinterpret_cast<float4*>(args.partial) + tile * plan.parts * (kSplitSide * kSplitSide / 4) + int(threadIdx.x);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float (&values)[4] = sums.values[i / 4][i % 4];
        __stcg(parts + (part * 8 + i) * kSplitThreads, make_float4(values[0], values[1], values[2], values[3]));
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        const uint32_t before = atomicAdd(args.arrived + tile, 1u);
        const bool is_last = before + 1 == uint32_t(plan.parts);
        if (is_last) args.arrived[tile] = 0;
        *flag = is_last;
    }
    __syncthreads();
    if (*flag == 0) return false;
    __threadfence();
    sums = SplitSums{};
#pragma unroll 2
    for (int of = 0; of < plan.parts; ++of) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float4 values = __ldcg(parts + (of * 8 + i) * kSplitThreads);
            float (&sum)[4] = sums.values[i / 4][i % 4];
            sum[0] += values.x;
            sum[1] += values.y;
            sum[2] += values.z;
            sum[3] += values.w;
        }
    }
    return true;
}

// What follows the products, pack by pack, from the tile in shared memory; `scratch` lies behind it.
template <class T, bool kAligned>
__device__ __forceinline__ void finish_tile(const Conv2dSplitArgs& args, const Tiling& tiling, const Tile& tile,
                                            const float* staged, float* scratch) {
    constexpr int kChannels = kPack<T>;
    const Place<T> place(kSplitPacks, kSplitThreads, tile);
    const int64_t channel = tile.first_channel + place.offset;
    float bias[kChannels];
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
        bias[i] = args.bias != nullptr && i < place.count ? args.bias[channel + i] : 0.0f;
    }
    ShiftedSums<kChannels> sums;
#pragma unroll
    for (int i = 0; i < kSplitRowsPerThread; ++i) {
        const int row = place.row + i * (kSplitThreads / kSplitPacks);
        const int64_t pixel = tile.first_pixel + row;
        if (place.count <= 0 || pixel >= tile.end_pixel) continue;
        const int64_t offset = (tile.sample * tiling.pixels + pixel) * tiling.channels + channel;
        float values[kChannels];
#pragma unroll
        for (int j = 0; j < kChannels; ++j) values[j] = staged[row * kStagedStride + place.offset + j] + bias[j];
        if (args.residual != nullptr) {
            float residual[kChannels];
            unpack<T>(load_raw<T, kAligned>(static_cast<const T*>(args.residual) + offset, place.count), residual);
#pragma unroll
            for (int j = 0; j < kChannels; ++j) values[j] += residual[j];
        }
#pragma unroll
        for (int j = 0; j < kChannels; ++j) values[j] *= args.scale;
        const uint4 rounded = pack<T>(values);
        store_raw<T, kAligned>(static_cast<T*>(args.out) + offset, place.count, rounded);
        if (args.moments != nullptr) {
            unpack<T>(rounded, values);
            sums.add(values);
        }
    }
    if (args.moments == nullptr) return;
    float* const here =
        args.moments + 2 * ((tile.sample * tiling.chunks + blockIdx.x) * tiling.channels + tile.first_channel);
    reduce_moments<T>(sums, tiling, tile, place, kSplitSide, scratch, [&](int of, const Moments& total) {
        here[2 * of] = total.mean;
        here[2 * of + 1] = __fdividef(total.m2, total.count);
    });
}

// The grid: tiles of a sample's pixels, tiles of its channels, and samples with their parts.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kSplitThreads, 2)
    conv2d_split_kernel(const __grid_constant__ Conv2dSplitArgs args, const __grid_constant__ SplitPlan plan,
                        int64_t first_sample) {
    uint4* const stages = simt::dynamic_shared<uint4>();
    const int sample = int(blockIdx.z) / plan.parts, part = int(blockIdx.z) - sample * plan.parts;
    const Tiling& tiling = plan.tiling;
    Tile tile;
    tile.sample = first_sample + sample;
    tile.first_channel = int64_t(blockIdx.y) * kSplitSide;
    tile.first_pixel = int64_t(blockIdx.x) * kSplitSide;
    tile.end_pixel = min(tile.first_pixel + kSplitSide, tiling.pixels);
    tile.channels = int(min(int64_t(kSplitSide), tiling.channels - tile.first_channel));
    const int64_t index = (tile.sample * tiling.slabs + blockIdx.y) * tiling.chunks + blockIdx.x;
    SplitSums sums;
    sum_steps<T>(args, plan, tile, plan.steps * part / plan.parts, plan.steps * (part + 1) / plan.parts, stages, sums);
    // Nobody reads the stages any more.
    __syncthreads();
    float* const staged = reinterpret_cast<float*>(stages);
    float* const scratch = staged + kStagedFloats;
    uint32_t* const flag = reinterpret_cast<uint32_t*>(scratch + kScratchFloats);
    if (plan.parts > 1 && !join_parts(args, plan, index, part, sums, flag)) return;
    sums.store(staged, kStagedStride);
    __syncthreads();
    finish_tile<T, kAligned>(args, tiling, tile, staged, scratch);
}

template <class T, bool kAligned>
void launch_split(const Conv2dSplitArgs& args, void* stream) {
    const int64_t grown = 2 * args.padding - args.kernel + 1;
    const int64_t out_width = args.width + grown, pixels = (args.height + grown) * out_width;
    SplitPlan plan{};
    plan.tiling = make_tiling(args.samples, args.out_channels, pixels, kSplitSide, kSplitPacks, kSplitSide);
    plan.out_width = int(out_width);
    plan.parts = int(conv2d_split_parts(pixels, args.in_channels, args.out_channels, args.kernel));
    plan.steps = int(conv2d_split_steps(args.in_channels, args.kernel));
    plan.channel_steps = int(ceil_div(args.in_channels, kSplitSide));
    const int64_t samples = max_grid_z / plan.parts;
    for (int64_t first = 0; first < args.samples; first += samples) {
        const dim3 grid(unsigned(plan.tiling.chunks), unsigned(plan.tiling.slabs),
                        unsigned(std::min(samples, args.samples - first) * plan.parts));
        EDM_FAST_LAUNCH((conv2d_split_kernel<T, kAligned>), grid, dim3(kSplitThreads), kSharedBytes, stream, args, plan,
                        first);
    }
}

}  // namespace

void conv2d_split(const Conv2dSplitArgs& args, int device, void* stream) {
    if (args.samples == 0 || args.out_channels == 0) return;
    DeviceGuard guard(device);
    const auto launch = [&]<class T>() {
        if (aligned_for_packs<T>({args.residual, args.out}, {args.out_channels})) {
            launch_split<T, true>(args, stream);
        } else {
            launch_split<T, false>(args, stream);
        }
    };
    if (args.dtype == kFloat16) {
        launch.template operator()<Half>();
    } else {
        launch.template operator()<BFloat16>();
    }
}

}  // namespace edm_fast::cuda
