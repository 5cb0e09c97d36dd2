// Every warp and block primitive once, so that its result can be compared with its definition.
#include "kernels.h"
#include "launch.cuh"
#include "simt.h"

namespace edm_fast::cuda {

namespace {

// Lane l publishes l + 1/4 (truncated for integers).
template <class T>
__global__ void shuffles_kernel(T* out) {
    const int thread = threadIdx.x, lane = thread % 32, threads = blockDim.x;
    const T value = T(thread + 0.25);
    out[0 * threads + thread] = __shfl_sync(kAllLanes, value, 3);
    out[1 * threads + thread] = __shfl_sync(kAllLanes, value, (lane + 1) % 8, 8);
    out[2 * threads + thread] = __shfl_up_sync(kAllLanes, value, 2);
    out[3 * threads + thread] = __shfl_up_sync(kAllLanes, value, 2, 8);
    out[4 * threads + thread] = __shfl_down_sync(kAllLanes, value, 5);
    out[5 * threads + thread] = __shfl_down_sync(kAllLanes, value, 5, 16);
    out[6 * threads + thread] = __shfl_xor_sync(kAllLanes, value, 1);
    // Two halves of a warp that go different ways may each shuffle among themselves.
    if (lane < 16) {
        out[7 * threads + thread] = __shfl_xor_sync(0x0000FFFFu, value, 15);
    } else {
        out[7 * threads + thread] = __shfl_sync(0xFFFF0000u, value, 31);
    }
}

__global__ void votes_kernel(int* out) {
    const int thread = threadIdx.x, threads = blockDim.x;
    out[0 * threads + thread] = int(__ballot_sync(kAllLanes, thread % 3 == 0));
    out[1 * threads + thread] = __any_sync(kAllLanes, thread == 40);
    out[2 * threads + thread] = __all_sync(kAllLanes, thread != 40);
    out[3 * threads + thread] = __syncthreads_count(thread % 5 == 0);
    out[4 * threads + thread] = __syncthreads_and(thread >= 0);
    out[5 * threads + thread] = __syncthreads_and(thread != 40);
    out[6 * threads + thread] = __syncthreads_or(thread == 40);
    out[7 * threads + thread] = __syncthreads_or(thread < 0);
}

}  // namespace

template <class T>
void shuffles(T* out, int threads, int device, void* stream) {
    DeviceGuard guard(device);
    EDM_FAST_LAUNCH(shuffles_kernel<T>, dim3(1), dim3(threads), 0, stream, out);
}
template void shuffles(float*, int, int, void*);
template void shuffles(double*, int, int, void*);
template void shuffles(int*, int, int, void*);
template void shuffles(unsigned*, int, int, void*);
template void shuffles(long*, int, int, void*);
template void shuffles(unsigned long long*, int, int, void*);

void votes(int* out, int threads, int device, void* stream) {
    DeviceGuard guard(device);
    EDM_FAST_LAUNCH(votes_kernel, dim3(1), dim3(threads), 0, stream, out);
}

}  // namespace edm_fast::cuda
