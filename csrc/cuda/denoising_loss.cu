// A block takes a whole sample, so that its sum has one order, which only the image's shape sets; from four elements on
// it is in double. Making the noise again bounds it.
#include "edm_fast/denoising_loss.h"
#include "image_io.cuh"
#include "launch.cuh"
#include "reduce.cuh"
#include "rgb_io.cuh"
#include "simt.h"

namespace edm_fast::cuda {

namespace {

// Of RGB images two tiles.
constexpr int kThreads = 192;
// Of shared memory, a double for each warp: a multiple of 16 bytes.
constexpr int kSumFloats = kThreads / kLanes * 2;

// e = D - y of a quad, by all threads of a block together; elements past the end are 0.
template <int kPlanes>
__device__ __forceinline__ void denoising_error(const DenoisingLossArgs& args, int64_t sample, const QuadPlace& place,
                                                float* tiles, float (&e)[kQuad]) {
    const float* row = args.rows + sample * kLevelSize;
    const bool reads_noise = noise_is_readable(args, sample);
    const float of_image = row[kImageFactor], of_output = row[kOutputFactor];
    // What is read is σ n.
    const float of_noise = reads_noise ? row[kNoiseFactor] / row[kSigma] : row[kNoiseFactor];
    float y[kQuad] = {}, n[kQuad] = {}, output[kQuad] = {};
    fetch_quad<kPlanes>(args.images, sample, place, y);
    fetch_quad<kPlanes>(args.model_output, sample, place, output);
    if (reads_noise) fetch_quad<kPlanes>(args.net_input, sample, place, n);
    exchange_quad<kPlanes>(args.images, sample, place, tiles, y);
    exchange_quad<kPlanes>(args.model_output, sample, place, tiles, output);
    if (args.noise.data != nullptr) {
        load_quad(args.noise, sample, place, n);
    } else if (reads_noise) {
        exchange_quad<kPlanes>(args.net_input, sample, place, tiles, n);
        const NoiseReader scaled_noise(row[kInputScale]);
#pragma unroll
        for (int i = 0; i < kQuad; ++i) n[i] = scaled_noise(n[i], y[i]);
    } else {
        const Normals normals =
            normal_block(uint64_t(args.seeds[sample]), uint64_t(place.first) / kQuad, args.draw, kDomainTraining);
        n[0] = normals.x, n[1] = normals.y, n[2] = normals.z, n[3] = normals.w;
    }
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
        e[i] = i < place.count ? of_image * y[i] + of_noise * n[i] + of_output * output[i] : 0.0f;
    }
}

template <int kPlanes>
__global__ void __launch_bounds__(kThreads, 4) denoising_loss_kernel(DenoisingLossArgs args) {
    using Steps = QuadSteps<kPlanes, kThreads>;
    double* const sums = simt::dynamic_shared<double>();
    float* const tiles = simt::dynamic_shared<float>() + kSumFloats;
    const int64_t sample = blockIdx.x;
    const float weight = args.rows[sample * kLevelSize + kWeight];
    const float steepness = 2.0f * weight * args.rows[sample * kLevelSize + kOutputFactor];
    double sum = 0.0;
    const int64_t end = Steps::end(args.channels, args.pixels);
    for (int64_t step = Steps::begin(0); step < end; step += Steps::kElements) {
        const QuadPlace place = Steps::place(step, args.channels, args.pixels);
        float e[kQuad], slope[kQuad];
        denoising_error<kPlanes>(args, sample, place, tiles, e);
        float quad = 0.0f;
#pragma unroll
        for (int i = 0; i < kQuad; ++i) {
            slope[i] = steepness * e[i];
            e[i] *= e[i];
            quad += e[i];
            e[i] *= weight;
        }
        sum += double(quad);
        if (args.error.data != nullptr) write_quad<kPlanes>(args.error, sample, place, tiles, e);
        if (args.slope.data != nullptr) write_quad<kPlanes>(args.slope, sample, place, tiles, slope);
    }
    if (args.loss == nullptr) return;
    sum = warp_sum(sum);
    if (threadIdx.x % kLanes == 0) sums[threadIdx.x / kLanes] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0.0;
        for (int i = 0; i < kThreads / kLanes; ++i) total += sums[i];
        args.loss[sample] = float(double(weight) * total);
    }
}

}  // namespace

void denoising_loss(const DenoisingLossArgs& args, int device, void* stream) {
    if (args.samples == 0) return;
    DeviceGuard guard(device);
    const auto launch_with = [&]<int kPlanes>() {
        using Steps = QuadSteps<kPlanes, kThreads>;
        EDM_FAST_LAUNCH(denoising_loss_kernel<kPlanes>, dim3(grid_size(args.samples, 1)), dim3(kThreads),
                        (kSumFloats + Steps::kTileFloats) * sizeof(float), stream, args);
    };
    if (planes_of(args.channels, args.pixels) == kRgb) return launch_with.template operator()<kRgb>();
    launch_with.template operator()<1>();
}

}  // namespace edm_fast::cuda
