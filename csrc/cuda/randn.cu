// randn: a thread makes one Philox block at a time, four elements of one sample. Bound by arithmetic (ten Philox
// rounds, two logarithms and two sine-cosine pairs per 16 bytes written in float32).
#include "edm_fast/normal.h"
#include "edm_fast/randn.h"
#include "image_io.cuh"
#include "launch.cuh"
#include "simt.h"

namespace edm_fast::cuda {

namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads, 5) randn_kernel(RandnArgs args) {
    const int64_t elements = args.channels * args.pixels;
    const int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kQuad;
    const int64_t stride = int64_t(gridDim.x) * kThreads * kQuad;
    for (int64_t sample = blockIdx.y; sample < args.samples; sample += gridDim.y) {
        const uint64_t seed = uint64_t(args.seeds[sample]);
        for (int64_t element = first; element < elements; element += stride) {
            const Normals normals = normal_block(seed, uint64_t(element) / kQuad, args.draw, args.domain);
            const float z[kQuad] = {normals.x, normals.y, normals.z, normals.w};
            store_quad(args.out, sample, quad_place(element, elements, args.pixels), z);
        }
    }
}

}  // namespace

void randn(const RandnArgs& args, int device, void* stream) {
    const int64_t elements = args.channels * args.pixels;
    if (args.samples == 0 || elements == 0) return;
    DeviceGuard guard(device);
    RandnArgs flat = args;
    if (args.out.pixel_stride == 1 && args.out.channel_stride == args.pixels) {
        flat.channels = 1;
        flat.pixels = elements;
    }
    const dim3 grid = quad_grid(args.samples, elements, kThreads * kQuad);
    EDM_FAST_LAUNCH(randn_kernel, grid, dim3(kThreads), 0, stream, flat);
}

}  // namespace edm_fast::cuda
