// A sample is one task: its sum has one order, whatever the number of threads.
#include "edm_fast/denoising_loss.h"

#include "image_io.h"
#include "noise_block.h"
#include "parallel.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

namespace {

constexpr int64_t kRun = 16 * kNoiseRun;
// Sums of as many interleaved elements, so that every instruction set adds in the same order.
constexpr int kLanes = 16;

// e = D - y of a run.
void denoising_error(const DenoisingLossArgs& args, int64_t sample, int64_t first, int64_t count, float* e) {
    const float* row = args.rows + sample * kLevelSize;
    alignas(64) float y[kRun], n[kRun];
    load(args.images, sample, args.pixels, first, count, y);
    training_noise(args.noise, args.seeds, args.draw, sample, args.pixels, first, count, n);
    load(args.model_output, sample, args.pixels, first, count, e);
    const float of_image = row[kImageFactor], of_noise = row[kNoiseFactor], of_output = row[kOutputFactor];
    for (int64_t i = 0; i < count; ++i) e[i] = of_image * y[i] + of_noise * n[i] + of_output * e[i];
}

}  // namespace

void denoising_loss(const DenoisingLossArgs& args, int threads) {
    const int64_t elements = args.channels * args.pixels;
    parallel_for(args.samples, threads, [&](int64_t sample) {
        const float weight = args.rows[sample * kLevelSize + kWeight];
        alignas(64) float e[kRun];
        double total = 0;
        for (int64_t first = 0; first < elements; first += kRun) {
            const int64_t count = elements - first < kRun ? elements - first : kRun;
            denoising_error(args, sample, first, count, e);
            for (int64_t i = 0; i < count; ++i) e[i] *= e[i];
            float sums[kLanes] = {};
            int64_t i = 0;
            for (; i + kLanes <= count; i += kLanes) {
                for (int lane = 0; lane < kLanes; ++lane) sums[lane] += e[i + lane];
            }
            for (; i < count; ++i) sums[i % kLanes] += e[i];
            for (int lane = 0; lane < kLanes; ++lane) total += double(sums[lane]);
            if (args.error.data != nullptr) {
                for (int64_t j = 0; j < count; ++j) e[j] *= weight;
                store(args.error, sample, args.pixels, first, count, e);
            }
        }
        if (args.loss != nullptr) args.loss[sample] = float(double(weight) * total);
    });
}

void denoising_loss_grad(const DenoisingLossGradArgs& grad, int threads) {
    const DenoisingLossArgs& args = grad.forward;
    const int64_t elements = args.channels * args.pixels;
    const int64_t runs = (elements + kRun - 1) / kRun;
    parallel_for(args.samples * runs, threads, [&](int64_t task) {
        const int64_t sample = task / runs;
        const int64_t first = task % runs * kRun;
        const int64_t count = elements - first < kRun ? elements - first : kRun;
        const float* row = args.rows + sample * kLevelSize;
        const float factor = 2 * row[kWeight] * row[kOutputFactor];
        const float of_sample = grad.loss_grad != nullptr ? grad.loss_grad[sample] : 0.0f;
        alignas(64) float e[kRun], g[kRun];
        denoising_error(args, sample, first, count, e);
        if (grad.error_grad.data != nullptr) {
            load(grad.error_grad, sample, args.pixels, first, count, g);
            for (int64_t i = 0; i < count; ++i) e[i] = (of_sample + g[i]) * factor * e[i];
        } else {
            for (int64_t i = 0; i < count; ++i) e[i] = of_sample * factor * e[i];
        }
        store(grad.output_grad, sample, args.pixels, first, count, e);
    });
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
