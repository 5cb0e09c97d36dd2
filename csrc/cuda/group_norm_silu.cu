// group_norm_silu: images that fit into shared memory take one kernel, others two; see group_norm_silu_resident.cuh and
// group_norm_silu_streaming.cuh.
#include <algorithm>
#include <optional>

#include "edm_fast/group_norm_silu.h"
#include "group_norm_silu_resident.cuh"
#include "group_norm_silu_streaming.cuh"
#include "launch.cuh"
#include "workspace.cuh"

namespace edm_fast::cuda {

namespace {

template <class T, bool kAligned>
void launch_resident(const GroupNormSiluArgs& args, const Fir& fir, const ResidentPlan& plan, void* stream) {
    const dim3 block(unsigned(plan.threads));
    // A loop over tiles in the kernel would cost registers.
    for (int64_t first = 0; first < plan.tiling.tiles; first += max_grid_x) {
        const dim3 grid(grid_size(plan.tiling.tiles - first, 1));
        if (args.resampling.direction != 0) {
            EDM_FAST_LAUNCH((group_norm_silu_resident<T, kAligned, true>), grid, block, plan.shared_bytes, stream, args,
                            plan.tiling, fir, first);
        } else {
            EDM_FAST_LAUNCH((group_norm_silu_resident<T, kAligned, false>), grid, block, plan.shared_bytes, stream,
                            args, plan.tiling, fir, first);
        }
    }
}

// About as many chunks as give each thread eight packs, and no more than the second kernel can join quickly.
template <class T>
Tiling moments_tiling(const GroupNormSiluArgs& args) {
    const int64_t channels = args.channels[0] + args.channels[1], pixels = args.height * args.width;
    const int64_t chunk = kStreamingPacksPerThread * kStreamingThreads / kLinePacks;
    return line_tiling<T>(args.samples, channels, pixels, std::max(chunk, ceil_div(pixels, kMaxChunks)));
}

template <class T, bool kAligned>
void launch_apply(const GroupNormSiluArgs& args, const ChunkMoments& moments, const Fir& fir, void* stream) {
    const int64_t channels = args.channels[0] + args.channels[1];
    const int columns = column_count(ceil_div(channels, kPack<T>), kLinePacks);
    const bool resampled = args.resampling.direction != 0;
    const int64_t pixels = resampled ? int64_t(fir.out_height) * fir.out_width : args.height * args.width;
    const auto tiling_by = [&](int64_t packs_per_thread) {
        return line_tiling<T>(args.samples, channels, pixels, packs_per_thread * kStreamingThreads / columns);
    };
    Tiling tiling = tiling_by(kStreamingPacksPerThread);
    // Few images are spread over more blocks. Each output is the same, whichever block makes it.
    for (int64_t packs = kStreamingPacksPerThread / 2; packs > 0 && tiling.tiles < kManyBlocks; packs /= 2) {
        tiling = tiling_by(packs);
    }
    const size_t shared = 2 * sizeof(float) * size_t(tiling.slab_channels);
    const dim3 grid(grid_size(tiling.tiles, 1)), block(kStreamingThreads);
    if (resampled) {
        EDM_FAST_LAUNCH((group_norm_silu_apply<T, kAligned, true>), grid, block, shared, stream, args, moments, tiling,
                        fir);
    } else {
        EDM_FAST_LAUNCH((group_norm_silu_apply<T, kAligned, false>), grid, block, shared, stream, args, moments, tiling,
                        fir);
    }
}

template <class T, bool kAligned>
void launch_streaming(const GroupNormSiluArgs& args, const Fir& fir, int device, void* stream) {
    const int64_t channels = args.channels[0] + args.channels[1], pixels = args.height * args.width;
    const Tiling tiling = moments_tiling<T>(args);
    const Workspace workspace(2 * sizeof(float) * size_t(args.samples * tiling.chunks * channels), device, stream);
    const size_t shared = sizeof(float) * size_t(moments_scratch(kStreamingThreads, tiling.slab_channels));
    EDM_FAST_LAUNCH((group_norm_silu_moments<T, kAligned>), dim3(grid_size(tiling.tiles, 1)), dim3(kStreamingThreads),
                    shared, stream, args, tiling, workspace.data());
    const ChunkMoments moments{{workspace.data(), nullptr}, {channels, 0}, pixels, tiling.chunk_pixels, tiling.chunks};
    GroupNormSiluArgs rest = args;
    if (args.addend != nullptr) {
        // The first kernel wrote the sum, dense: now it is x.
        rest.source[0] = args.sum;
        rest.source_stride[0] = channels;
        rest.addend = nullptr;
    }
    launch_apply<T, kAligned>(rest, moments, fir, stream);
}

}  // namespace

void group_norm_silu(const GroupNormSiluArgs& args, int device, void* stream) {
    const int64_t channels = args.channels[0] + args.channels[1], pixels = args.height * args.width;
    if (args.samples == 0 || channels == 0 || pixels == 0) return;
    DeviceGuard guard(device);
    const Fir fir = make_fir(args.resampling, args.height, args.width);
    const auto aligned = [&]<class T>() {
        return aligned_for_packs<T>({args.source[0], args.source[1], args.addend, args.sum, args.out, args.plain},
                                    {args.channels[0], args.channels[1], args.source_stride[0],
                                     args.channels[1] != 0 ? args.source_stride[1] : 0});
    };
    for_storage(args.dtype, aligned, [&]<class T, bool kAligned>() {
        if (args.moments[0] != nullptr) {
            const ChunkMoments moments{{args.moments[0], args.moments[1]},
                                       {args.channels[0], args.channels[1]},
                                       pixels,
                                       args.moments_chunk,
                                       ceil_div(pixels, args.moments_chunk)};
            launch_apply<T, kAligned>(args, moments, fir, stream);
        } else if (const std::optional<ResidentPlan> plan = plan_resident<T>(args, max_shared_bytes(device))) {
            launch_resident<T, kAligned>(args, fir, *plan, stream);
        } else {
            launch_streaming<T, kAligned>(args, fir, device, stream);
        }
    });
}

}  // namespace edm_fast::cuda
