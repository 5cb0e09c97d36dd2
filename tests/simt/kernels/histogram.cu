// Histogram of bytes, their sum and the largest: bins in shared memory per block, added to the global ones at the end.
#include "kernels.h"
#include "launch.cuh"
#include "simt.h"

namespace edm_fast::cuda {

namespace {

constexpr int kBins = 256, kHistogramThreads = 64;

__global__ void __launch_bounds__(kHistogramThreads) histogram_kernel(HistogramArgs args) {
    unsigned* bins = simt::dynamic_shared<unsigned>();
    for (int bin = threadIdx.x; bin < kBins; bin += blockDim.x) bins[bin] = 0;
#if !defined(WITHOUT_BARRIER_7)
    __syncthreads();
#endif
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < args.count; i += gridDim.x * blockDim.x) {
        const int value = args.values[i];
        atomicAdd(bins + value, 1u);
        atomicAdd(args.sum, float(value));
        atomicMax(args.largest, value);
    }
#if !defined(WITHOUT_BARRIER_8)
    __syncthreads();
#endif
    for (int bin = threadIdx.x; bin < kBins; bin += blockDim.x) atomicAdd(args.bins + bin, bins[bin]);
}

}  // namespace

void histogram(const HistogramArgs& args, int device, void* stream) {
    DeviceGuard guard(device);
    constexpr int64_t max_blocks = 3;
    EDM_FAST_LAUNCH(histogram_kernel, dim3(grid_size(args.count, kHistogramThreads, max_blocks)),
                    dim3(kHistogramThreads), kBins * sizeof(unsigned), stream, args);
}

}  // namespace edm_fast::cuda
