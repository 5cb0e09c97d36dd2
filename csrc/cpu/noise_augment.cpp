#include "edm_fast/noise_augment.h"

#include "image_io.h"
#include "noise_block.h"
#include "parallel.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

// A task is a run of kRun elements of one sample. Each makes the sample's row for itself; the first one keeps it.
void noise_augment(const NoiseAugmentArgs& args, int threads) {
    constexpr int64_t kRun = 32 * kNoiseRun;
    const int64_t elements = args.channels * args.pixels;
    const int64_t runs = elements == 0 ? 1 : (elements + kRun - 1) / kRun;
    parallel_for(args.samples * runs, threads, [&](int64_t task) {
        const int64_t sample = task / runs;
        const int64_t first = task % runs * kRun;
        const int64_t count = elements - first < kRun ? elements - first : kRun;
        float row[kLevelSize];
        float* const kept = args.rows + sample * kLevelSize;
        if (args.rule.source == kRowsGiven) {
            for (int i = 0; i < kLevelSize; ++i) row[i] = kept[i];
        } else {
            const bool given = args.rule.source == kSigmaGiven;
            level_row(args.rule,
                      given ? args.sigma[sample] : drawn_sigma(args.rule, uint64_t(args.seeds[sample]), args.draw),
                      row);
            if (first == 0) {
                for (int i = 0; i < kLevelSize; ++i) kept[i] = row[i];
            }
        }
        if (count == 0) return;
        alignas(64) float y[kRun], n[kRun];
        load(args.images, sample, args.pixels, first, count, y);
        training_noise(args.noise, args.seeds, args.draw, sample, args.pixels, first, count, n);
        const float sigma = row[kSigma], c_in = row[kInputScale];
        for (int64_t i = 0; i < count; ++i) y[i] = c_in * (y[i] + sigma * n[i]);
        store(args.net_input, sample, args.pixels, first, count, y);
    });
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
