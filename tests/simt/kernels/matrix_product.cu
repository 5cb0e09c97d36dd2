// c = a · bᵀ by two warps of 16 rows each, 16 columns of a and b at a time, through two stages that copies fill ahead.
// A warp copies what the other one reads. One warp takes its registers by load_matrices, the other by the places that
// the PTX manual gives for the fragments of mma.m16n8k16.
#include "kernels.h"
#include "launch.cuh"
#include "simt.h"
#include "tensor_core.cuh"

namespace edm_fast::cuda {

namespace {

constexpr int kThreads = 64, kDepth = 16, kRows = 32, kColumns = 8, kPacks = 2;

// Packs of 8 elements, a row of 16 after another.
struct Stage {
    uint4 a[kRows * kPacks], b[kColumns * kPacks];
};

__device__ uint32_t pair_at(const uint4* rows, int row, int column) {
    return reinterpret_cast<const uint32_t*>(rows)[(row * kDepth + column) / 2];
}

__global__ void __launch_bounds__(kThreads) matrix_product_kernel(MatrixProductArgs args) {
    Stage* const stages = simt::dynamic_shared<Stage>();
    const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
    const auto load = [&](int step) {
        Stage& stage = stages[step % 2];
        const int place = kThreads - 1 - thread, row = place / kPacks, pack = place % kPacks;
        const int offset = (row * args.steps + step) * kDepth + pack * 8;
        copy_async_or_zero(stage.a + place, args.a + offset, true);
        if (row < kColumns) copy_async_or_zero(stage.b + place, args.b + offset, true);
        commit_copies();
    };
    float sum[4] = {};
    load(0);
    for (int step = 0; step < args.steps; ++step) {
        if (step + 1 < args.steps) {
            load(step + 1);
        } else {
            commit_copies();
        }
#if !defined(WITHOUT_BARRIER_9)
        wait_for_groups<1>();
#endif
#if !defined(WITHOUT_BARRIER_10)
        __syncthreads();
#endif
        const Stage& stage = stages[step % 2];
        uint32_t a[4];
        const int group = lane / 4, in_group = lane % 4;
        if (warp == 0) {
            load_matrices(a, stage.a + lane % 16 * kPacks + lane / 16);
        } else {
            for (int i = 0; i < 8; i += 2) {
                const int row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
                const int column = in_group * 2 + (i < 4 ? 0 : 8);
                a[i / 2] = pair_at(stage.a, 16 + row, column);
            }
        }
        uint32_t b[2];
        for (int i = 0; i < 4; i += 2) b[i / 2] = pair_at(stage.b, group, in_group * 2 + (i < 2 ? 0 : 8));
        multiply_add<BFloat16>(sum, a, b);
#if !defined(WITHOUT_BARRIER_11)
        __syncthreads();
#endif
    }
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + i % 2;
        args.c[(16 * warp + row) * kColumns + column] = sum[i];
    }
}

}  // namespace

void matrix_product(const MatrixProductArgs& args, int device, void* stream) {
    DeviceGuard guard(device);
    EDM_FAST_LAUNCH(matrix_product_kernel, dim3(1), dim3(kThreads), 2 * sizeof(Stage), stream, args);
}

}  // namespace edm_fast::cuda
