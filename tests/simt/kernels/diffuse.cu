// Steps of the stencil y[i] = (x[i-1] + 2 x[i] + x[i+1]) / 4 with mirrored ends. A block holds one line of 128 elements
// in shared memory and updates it in place, so every step needs a barrier before and after its writes.
#include "kernels.h"
#include "launch.cuh"
#include "simt.h"

namespace edm_fast::cuda {

namespace {

constexpr int kLine = 128;

__global__ void __launch_bounds__(kLine) diffuse_kernel(DiffuseArgs args) {
    float* line = simt::dynamic_shared<float>();
    const int i = threadIdx.x, left = i == 0 ? 1 : i - 1, right = i == kLine - 1 ? kLine - 2 : i + 1;
    line[i] = args.x[blockIdx.x * kLine + i];
    for (int step = 0; step < args.steps; ++step) {
#if !defined(WITHOUT_BARRIER_5)
        __syncthreads();
#endif
        const float next = 0.25f * (line[left] + line[right]) + 0.5f * line[i];
#if !defined(WITHOUT_BARRIER_6)
        __syncthreads();
#endif
        line[i] = next;
    }
    args.y[blockIdx.x * kLine + i] = line[i];
}

}  // namespace

void diffuse(const DiffuseArgs& args, int device, void* stream) {
    DeviceGuard guard(device);
    EDM_FAST_LAUNCH(diffuse_kernel, dim3(args.lines), dim3(kLine), kLine * sizeof(float), stream, args);
}

}  // namespace edm_fast::cuda
