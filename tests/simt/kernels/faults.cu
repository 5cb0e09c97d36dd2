// Mistakes that the emulator must report, one per case.
#include "kernels.h"
#include "launch.cuh"
#include "simt.h"

namespace edm_fast::cuda {

namespace {

constexpr int kFaultThreads = 64;

__global__ void faulty_kernel(Fault fault, const float* x, float* out, int threads) {
    float* shared = simt::dynamic_shared<float>();
    const int thread = threadIdx.x;
    float value = x[thread];
    switch (fault) {
        case Fault::exited_lane_at_shuffle:
            if (thread == 37) return;
            value = __shfl_xor_sync(kAllLanes, value, 1);
            break;
        case Fault::lane_at_barrier_at_shuffle:
            if (thread < 4) {
                __syncthreads();
            } else {
                value = __shfl_xor_sync(kAllLanes, value, 1);
            }
            break;
        case Fault::mask_without_own_lane:
            value = __shfl_xor_sync(0x0000FFFFu, value, 1);
            break;
        case Fault::two_barriers:
            if (thread < 32) {
                __syncthreads();
            } else {
                __syncthreads();
            }
            break;
        case Fault::shared_write_past_end:
            shared[thread + 1] = value;
            break;
        case Fault::shared_write_before_start:
            shared[thread - 1] = value;
            break;
        case Fault::shared_read_past_end:
            shared[thread] = value;
            __syncthreads();
            value = shared[thread + 1];
            break;
        case Fault::global_read_past_end:
            value = x[thread + 1];
            break;
        case Fault::shared_read_uninitialised:
            if (thread % 2 == 0) shared[thread] = value;
            __syncthreads();
            value = shared[thread];
            break;
        case Fault::trap:
            if (thread == threads - 1) __trap();
            break;
    }
    out[thread] = value;
}

__global__ void empty_kernel() {}

}  // namespace

void run_fault(Fault fault, const float* x, float* out, int device, void* stream) {
    DeviceGuard guard(device);
    EDM_FAST_LAUNCH(faulty_kernel, dim3(1), dim3(kFaultThreads), kFaultThreads * sizeof(float), stream, fault, x, out,
                    kFaultThreads);
}

void launch_empty(LaunchSizes sizes, int device, void* stream) {
    DeviceGuard guard(device);
    EDM_FAST_LAUNCH(empty_kernel, dim3(sizes.grid), dim3(sizes.block_x, sizes.block_y), sizes.shared_bytes, stream);
}

}  // namespace edm_fast::cuda
