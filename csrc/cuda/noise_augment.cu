// noise_augment: a block takes quads of one sample. Its first thread makes the sample's row, in double, for all of
// them; then a thread makes one Philox block at a time. Bound by the noise's arithmetic, as randn is.
#include "edm_fast/noise_augment.h"
#include "image_io.cuh"
#include "launch.cuh"
#include "rgb_io.cuh"
#include "simt.h"

namespace edm_fast::cuda {

namespace {

// Of RGB images two tiles.
constexpr int kThreads = 192;

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

template <int kPlanes>
__global__ void __launch_bounds__(kThreads, 5) noise_augment_kernel(NoiseAugmentArgs args) {
    using Steps = QuadSteps<kPlanes, kThreads>;
    float* const tiles = simt::dynamic_shared<float>();
    float* const row = tiles + Steps::kTileFloats;
    const int64_t stride = int64_t(gridDim.x) * Steps::kElements, end = Steps::end(args.channels, args.pixels);
    for (int64_t sample = blockIdx.y; sample < args.samples; sample += gridDim.y) {
        if (threadIdx.x == 0) make_row(args, sample, row);
        __syncthreads();
        const float sigma = row[kSigma], c_in = row[kInputScale];
        __syncthreads();
        const uint64_t seed = args.noise.data == nullptr ? uint64_t(args.seeds[sample]) : 0;
        for (int64_t step = Steps::begin(blockIdx.x); step < end; step += stride) {
            const QuadPlace place = Steps::place(step, args.channels, args.pixels);
            float y[kQuad] = {}, n[kQuad] = {};
            read_quad<kPlanes>(args.images, sample, place, tiles, y);
            if (args.noise.data != nullptr) {
                load_quad(args.noise, sample, place, n);
            } else {
                const Normals normals = normal_block(seed, uint64_t(place.first) / kQuad, args.draw, kDomainTraining);
                n[0] = normals.x, n[1] = normals.y, n[2] = normals.z, n[3] = normals.w;
            }
#pragma unroll
            for (int i = 0; i < kQuad; ++i) y[i] = c_in * (y[i] + sigma * n[i]);
            write_quad<kPlanes>(args.net_input, sample, place, tiles, y);
        }
    }
}

}  // namespace

void noise_augment(const NoiseAugmentArgs& args, int device, void* stream) {
    if (args.samples == 0) return;
    DeviceGuard guard(device);
    const auto launch_with = [&]<int kPlanes>() {
        using Steps = QuadSteps<kPlanes, kThreads>;
        const dim3 grid = quad_grid(args.samples, Steps::end(args.channels, args.pixels), Steps::kElements);
        EDM_FAST_LAUNCH(noise_augment_kernel<kPlanes>, grid, dim3(kThreads),
                        (Steps::kTileFloats + kLevelSize) * sizeof(float), stream, args);
    };
    if (planes_of(args.channels, args.pixels) == kRgb) return launch_with.template operator()<kRgb>();
    launch_with.template operator()<1>();
}

}  // namespace edm_fast::cuda
