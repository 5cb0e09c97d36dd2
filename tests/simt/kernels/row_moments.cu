// Mean and variance of every row: one block per row, two block reductions with the same scratch memory.
#include "kernels.h"
#include "launch.cuh"
#include "simt.h"

namespace edm_fast::cuda {

namespace {

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
    return value;
}

// The sum over the block, for every thread. scratch: [32].
__device__ __forceinline__ float block_sum(float value, float* scratch) {
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
#if !defined(WITHOUT_BARRIER_1)
    __syncthreads();
#endif
    if (threadIdx.x < 32) {
        value = warp_sum(threadIdx.x < blockDim.x / 32 ? scratch[threadIdx.x] : 0.0f);
        if (threadIdx.x == 0) scratch[0] = value;
    }
#if !defined(WITHOUT_BARRIER_2)
    __syncthreads();
#endif
    value = scratch[0];
#if !defined(WITHOUT_BARRIER_3)
    __syncthreads();
#endif
    return value;
}

__global__ void row_moments_kernel(RowMomentsArgs args) {
    float* scratch = simt::dynamic_shared<float>();
    const float* row = args.x + int64_t(blockIdx.x) * args.columns;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < args.columns; i += blockDim.x) sum += row[i];
    const float mean = block_sum(sum, scratch) / args.columns;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < args.columns; i += blockDim.x) squares += (row[i] - mean) * (row[i] - mean);
    const float variance = block_sum(squares, scratch) / args.columns;
    if (threadIdx.x == 0) {
        args.mean[blockIdx.x] = mean;
        args.variance[blockIdx.x] = variance;
    }
}

}  // namespace

void row_moments(const RowMomentsArgs& args, int threads, int device, void* stream) {
    DeviceGuard guard(device);
    EDM_FAST_LAUNCH(row_moments_kernel, dim3(args.rows), dim3(threads), 32 * sizeof(float), stream, args);
}

}  // namespace edm_fast::cuda
