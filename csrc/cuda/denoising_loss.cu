// A block takes a whole sample, so that its sum has one order. Making the noise again bounds it.
#include "edm_fast/denoising_loss.h"
#include "image_io.cuh"
#include "launch.cuh"
#include "reduce.cuh"
#include "simt.h"

namespace edm_fast::cuda {

namespace {

constexpr int kThreads = 256;

// e = D - y of a quad; elements past the end are 0.
__device__ __forceinline__ void denoising_error(const DenoisingLossArgs& args, int64_t sample, int64_t element,
                                                const QuadPlace& place, float (&e)[kQuad]) {
    const float* row = args.rows + sample * kLevelSize;
    const bool reads_noise = noise_is_readable(args, sample);
    const float of_image = row[kImageFactor], of_output = row[kOutputFactor];
    // What is read is σ n.
    const float of_noise = reads_noise ? row[kNoiseFactor] / row[kSigma] : row[kNoiseFactor];
    float y[kQuad] = {}, n[kQuad] = {}, output[kQuad] = {};
    load_quad(args.images, sample, place, y);
    load_quad(args.model_output, sample, place, output);
    if (args.noise.data != nullptr) {
        load_quad(args.noise, sample, place, n);
    } else if (reads_noise) {
        load_quad(args.net_input, sample, place, n);
        const NoiseReader scaled_noise(row[kInputScale]);
#pragma unroll
        for (int i = 0; i < kQuad; ++i) n[i] = scaled_noise(n[i], y[i]);
    } else {
        const Normals normals =
            normal_block(uint64_t(args.seeds[sample]), uint64_t(element) / kQuad, args.draw, kDomainTraining);
        n[0] = normals.x, n[1] = normals.y, n[2] = normals.z, n[3] = normals.w;
    }
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
        e[i] = i < place.count ? of_image * y[i] + of_noise * n[i] + of_output * output[i] : 0.0f;
    }
}

__global__ void __launch_bounds__(kThreads) denoising_loss_kernel(DenoisingLossArgs args) {
    float* const sums = simt::dynamic_shared<float>();
    const int64_t elements = args.channels * args.pixels;
    const int64_t sample = blockIdx.x;
    const float weight = args.rows[sample * kLevelSize + kWeight];
    const float steepness = 2.0f * weight * args.rows[sample * kLevelSize + kOutputFactor];
    float sum = 0.0f;
    for (int64_t element = int64_t(threadIdx.x) * kQuad; element < elements; element += int64_t(kThreads) * kQuad) {
        const QuadPlace place = quad_place(element, elements, args.pixels);
        float e[kQuad], slope[kQuad];
        denoising_error(args, sample, element, place, e);
        float quad = 0.0f;
#pragma unroll
        for (int i = 0; i < kQuad; ++i) {
            slope[i] = steepness * e[i];
            e[i] *= e[i];
            quad += e[i];
            e[i] *= weight;
        }
        sum += quad;
        if (args.error.data != nullptr) store_quad(args.error, sample, place, e);
        if (args.slope.data != nullptr) store_quad(args.slope, sample, place, slope);
    }
    if (args.loss == nullptr) return;
    sum = warp_sum(sum);
    if (threadIdx.x % kLanes == 0) sums[threadIdx.x / kLanes] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        float total = 0.0f;
        for (int i = 0; i < kThreads / kLanes; ++i) total += sums[i];
        args.loss[sample] = weight * total;
    }
}

}  // namespace

void denoising_loss(const DenoisingLossArgs& args, int device, void* stream) {
    if (args.samples == 0) return;
    DeviceGuard guard(device);
    EDM_FAST_LAUNCH(denoising_loss_kernel, dim3(grid_size(args.samples, 1)), dim3(kThreads),
                    kThreads / kLanes * sizeof(float), stream, args);
}

}  // namespace edm_fast::cuda
