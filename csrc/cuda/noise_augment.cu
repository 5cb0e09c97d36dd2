// noise_augment: a block takes quads of one sample. Its first thread makes the sample's row, in double, for all of
// them; then a thread makes one Philox block at a time. Bound by the noise's arithmetic, as randn is.
#include "edm_fast/noise_augment.h"
#include "image_io.cuh"
#include "launch.cuh"
#include "simt.h"

namespace edm_fast::cuda {

namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ void make_row(const NoiseAugmentArgs& args, int64_t sample, float* row) {
    float* const kept = args.rows + sample * kLevelSize;
    if (args.rule.source == kRowsGiven) {
        for (int i = 0; i < kLevelSize; ++i) row[i] = kept[i];
        return;
    }
    const bool given = args.rule.source == kSigmaGiven;
    level_row(args.rule, given ? args.sigma[sample] : drawn_sigma(args.rule, uint64_t(args.seeds[sample]), args.draw),
              row);
    if (blockIdx.x == 0) {
        for (int i = 0; i < kLevelSize; ++i) kept[i] = row[i];
    }
}

__global__ void __launch_bounds__(kThreads, 5) noise_augment_kernel(NoiseAugmentArgs args) {
    float* const row = simt::dynamic_shared<float>();
    const int64_t elements = args.channels * args.pixels;
    const int64_t start = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kQuad;
    const int64_t stride = int64_t(gridDim.x) * kThreads * kQuad;
    for (int64_t sample = blockIdx.y; sample < args.samples; sample += gridDim.y) {
        if (threadIdx.x == 0) make_row(args, sample, row);
        __syncthreads();
        const float sigma = row[kSigma], c_in = row[kInputScale];
        __syncthreads();
        const uint64_t seed = args.noise.data == nullptr ? uint64_t(args.seeds[sample]) : 0;
        for (int64_t element = start; element < elements; element += stride) {
            const QuadPlace place = quad_place(element, elements, args.pixels);
            float y[kQuad] = {}, n[kQuad] = {};
            load_quad(args.images, sample, place, y);
            if (args.noise.data != nullptr) {
                load_quad(args.noise, sample, place, n);
            } else {
                const Normals normals = normal_block(seed, uint64_t(element) / kQuad, args.draw, kDomainTraining);
                n[0] = normals.x, n[1] = normals.y, n[2] = normals.z, n[3] = normals.w;
            }
#pragma unroll
            for (int i = 0; i < kQuad; ++i) y[i] = c_in * (y[i] + sigma * n[i]);
            store_quad(args.net_input, sample, place, y);
        }
    }
}

}  // namespace

void noise_augment(const NoiseAugmentArgs& args, int device, void* stream) {
    if (args.samples == 0) return;
    DeviceGuard guard(device);
    EDM_FAST_LAUNCH(noise_augment_kernel, quad_grid(args.samples, args.channels * args.pixels, kThreads),
                    dim3(kThreads), kLevelSize * sizeof(float), stream, args);
}

}  // namespace edm_fast::cuda
