// A sample is one task: its sum has one order, whatever the number of threads.
#include "edm_fast/denoising_loss.h"

#include <cstring>

#include "noise_block.h"
#include "parallel.h"
#include "rgb_io.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

namespace {

// Sums of 16 interleaved elements, so that every instruction set adds in the same order.
constexpr int kColumns = 16;
typedef float Columns __attribute__((vector_size(4 * kColumns)));

static double sum_of_squares(const float* e, int64_t count) {
    Columns sums = {}, values = {};
    int64_t i = 0;
    for (; i + kColumns <= count; i += kColumns) {
        std::memcpy(&values, e + i, sizeof values);
        sums += values * values;
    }
    for (; i < count; ++i) sums[i % kColumns] += e[i] * e[i];
    double total = 0;
    for (int column = 0; column < kColumns; ++column) total += double(sums[column]);
    return total;
}

template <int kPlanes>
static void loss_of_sample(const DenoisingLossArgs& args, int64_t sample) {
    constexpr int64_t kRun = (kPlanes == 1 ? 8 : 4) * kNoiseRun;
    const int64_t plane_size = args.channels * args.pixels / kPlanes;
    const float* row = args.rows + sample * kLevelSize;
    const bool reads_noise = noise_is_readable(args, sample);
    const float of_image = row[kImageFactor], of_output = row[kOutputFactor];
    const NoiseReader scaled_noise(row[kInputScale]);
    // What is read is σ n.
    const float of_noise = reads_noise ? row[kNoiseFactor] / row[kSigma] : row[kNoiseFactor];
    const float weight = row[kWeight], steepness = 2 * weight * of_output;
    double total = 0;
    for (int64_t first = 0; first < plane_size; first += kRun) {
        const int64_t count = plane_size - first < kRun ? plane_size - first : kRun;
        alignas(64) float y[kPlanes][kRun], n[kPlanes][kRun], e[kPlanes][kRun];
        load_planes(args.images, sample, args.pixels, plane_size, first, count, y);
        load_planes(args.model_output, sample, args.pixels, plane_size, first, count, e);
        if (reads_noise) load_planes(args.net_input, sample, args.pixels, plane_size, first, count, n);
        for (int p = 0; p < kPlanes; ++p) {
            if (reads_noise) {
                for (int64_t i = 0; i < count; ++i) n[p][i] = scaled_noise(n[p][i], y[p][i]);
            } else {
                training_noise(args.noise, args.seeds, args.draw, sample, args.pixels, p * plane_size + first, count,
                               n[p]);
            }
            // e = D - y
            for (int64_t i = 0; i < count; ++i) {
                e[p][i] = of_image * y[p][i] + of_noise * n[p][i] + of_output * e[p][i];
            }
            total += sum_of_squares(e[p], count);
        }
        if (args.slope.data != nullptr) {
            for (int p = 0; p < kPlanes; ++p) {
                for (int64_t i = 0; i < count; ++i) y[p][i] = steepness * e[p][i];
            }
            store_planes(args.slope, sample, args.pixels, plane_size, first, count, y);
        }
        if (args.error.data != nullptr) {
            for (int p = 0; p < kPlanes; ++p) {
                for (int64_t i = 0; i < count; ++i) e[p][i] = weight * (e[p][i] * e[p][i]);
            }
            store_planes(args.error, sample, args.pixels, plane_size, first, count, e);
        }
    }
    if (args.loss != nullptr) args.loss[sample] = float(double(weight) * total);
}

}  // namespace

void denoising_loss(const DenoisingLossArgs& args, int threads) {
    const bool by_planes = planes_of(args.channels, args.pixels) == 3;
    parallel_for(args.samples, threads, [&](int64_t sample) {
        if (by_planes) return loss_of_sample<3>(args, sample);
        loss_of_sample<1>(args, sample);
    });
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
