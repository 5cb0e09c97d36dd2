// A sample is one task: its sum has one order, whatever the number of threads.
#include "edm_fast/denoising_loss.h"

#include <cstring>

#include "image_io.h"
#include "noise_block.h"
#include "parallel.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

namespace {

constexpr int64_t kRun = 8 * kNoiseRun;
// Sums of 16 interleaved elements, so that every instruction set adds in the same order.
constexpr int kColumns = 16;
typedef float Columns __attribute__((vector_size(4 * kColumns)));

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
        const float steepness = 2 * weight * args.rows[sample * kLevelSize + kOutputFactor];
        alignas(64) float e[kRun];
        double total = 0;
        for (int64_t first = 0; first < elements; first += kRun) {
            const int64_t count = elements - first < kRun ? elements - first : kRun;
            denoising_error(args, sample, first, count, e);
            if (args.slope.data != nullptr) {
                alignas(64) float slope[kRun];
                for (int64_t i = 0; i < count; ++i) slope[i] = steepness * e[i];
                store(args.slope, sample, args.pixels, first, count, slope);
            }
            Columns sums = {}, values = {};
            int64_t i = 0;
            for (; i + kColumns <= count; i += kColumns) {
                std::memcpy(&values, e + i, sizeof values);
                sums += values * values;
            }
            for (; i < count; ++i) sums[i % kColumns] += e[i] * e[i];
            for (int column = 0; column < kColumns; ++column) total += double(sums[column]);
            if (args.error.data != nullptr) {
                for (i = 0; i < count; ++i) e[i] = weight * (e[i] * e[i]);
                store(args.error, sample, args.pixels, first, count, e);
            }
        }
        if (args.loss != nullptr) args.loss[sample] = float(double(weight) * total);
    });
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
