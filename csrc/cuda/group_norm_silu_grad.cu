// group_norm_silu_grad: two kernels, of which the second needs sums over all pixels; see group_norm_silu_grad.cuh.
#include <algorithm>

#include "edm_fast/group_norm_silu.h"
#include "group_norm_silu_grad.cuh"
#include "launch.cuh"
#include "workspace.cuh"

namespace edm_fast::cuda {

namespace {

template <class T, bool kAligned, bool kResampled>
void launch_grad(const GroupNormSiluGradArgs& args, const Fir& fir, int device, void* stream) {
    const GroupNormSiluArgs& forward = args.forward;
    const int64_t channels = forward.channels[0] + forward.channels[1], pixels = forward.height * forward.width;
    const int columns = column_count(ceil_div(channels, kPack<T>), kLinePacks);
    const int64_t chunk = kGradPacksPerThread * kGradThreads / columns;
    const Tiling in_chunks =
        line_tiling<T>(forward.samples, channels, pixels, std::max(chunk, ceil_div(pixels, kMaxGradChunks)));
    const Workspace workspace(kGradSums * sizeof(float) * size_t(forward.samples * in_chunks.chunks * channels), device,
                              stream);
    const ChunkSums sums{workspace.data(), channels, in_chunks.chunks};
    const size_t scratch = sizeof(float) * size_t(sums_scratch(kGradSums, kGradThreads, in_chunks.slab_channels));
    EDM_FAST_LAUNCH((group_norm_silu_grad_sums<T, kAligned, kResampled>), dim3(grid_size(in_chunks.tiles, 1)),
                    dim3(kGradThreads), scratch, stream, args, in_chunks, fir, sums);
    const bool images = args.grad_source[0] != nullptr || args.grad_source[1] != nullptr;
    const Tiling outputs = line_tiling<T>(forward.samples, channels, pixels, images ? chunk : pixels);
    EDM_FAST_LAUNCH((group_norm_silu_grad_apply<T, kAligned, kResampled>), dim3(grid_size(outputs.tiles, 1)),
                    dim3(kGradThreads), 2 * sizeof(float) * size_t(outputs.slab_channels), stream, args, outputs, fir,
                    sums);
}

}  // namespace

void group_norm_silu_grad(const GroupNormSiluGradArgs& args, int device, void* stream) {
    const GroupNormSiluArgs& forward = args.forward;
    if (forward.samples == 0 || forward.channels[0] + forward.channels[1] == 0) return;
    if (forward.height * forward.width == 0) return;
    DeviceGuard guard(device);
    const auto aligned = [&]<class T>() {
        return aligned_for_packs<T>({forward.source[0], forward.source[1], forward.addend, args.grad_out,
                                     args.grad_plain, args.grad_sum, args.grad_source[0], args.grad_source[1]},
                                    {forward.channels[0], forward.channels[1], forward.source_stride[0],
                                     forward.channels[1] != 0 ? forward.source_stride[1] : 0});
    };
    const Fir fir = transposed(make_fir(forward.resampling, forward.height, forward.width));
    for_storage(forward.dtype, aligned, [&]<class T, bool kAligned>() {
        if (forward.resampling.direction != 0) {
            launch_grad<T, kAligned, true>(args, fir, device, stream);
        } else {
            launch_grad<T, kAligned, false>(args, fir, device, stream);
        }
    });
}

}  // namespace edm_fast::cuda
