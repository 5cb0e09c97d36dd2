#include "edm_fast/noise_augment.h"

#include "noise_block.h"
#include "parallel.h"
#include "rgb_io.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

// A task is a run of the sample's planes. Each makes the sample's row for itself; the first one keeps it.
template <int kPlanes>
static void noise_augment_planes(const NoiseAugmentArgs& args, int threads) {
    constexpr int64_t kRun = (kPlanes == 1 ? 32 : 8) * kNoiseRun;
    const int64_t plane_size = args.channels * args.pixels / kPlanes;
    const int64_t runs = plane_size == 0 ? 1 : (plane_size + kRun - 1) / kRun;
    parallel_for(args.samples * runs, threads, [&](int64_t task) {
        const int64_t sample = task / runs;
        const int64_t first = task % runs * kRun;
        const int64_t count = plane_size - first < kRun ? plane_size - first : kRun;
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
        alignas(64) float y[kPlanes][kRun], n[kPlanes][kRun];
        load_planes(args.images, sample, args.pixels, plane_size, first, count, y);
        const float sigma = row[kSigma], c_in = row[kInputScale];
        for (int p = 0; p < kPlanes; ++p) {
            training_noise(args.noise, args.seeds, args.draw, sample, args.pixels, p * plane_size + first, count, n[p]);
            for (int64_t i = 0; i < count; ++i) y[p][i] = c_in * (y[p][i] + sigma * n[p][i]);
        }
        store_planes(args.net_input, sample, args.pixels, plane_size, first, count, y);
    });
}

void noise_augment(const NoiseAugmentArgs& args, int threads) {
    if (planes_of(args.channels, args.pixels) == 3) return noise_augment_planes<3>(args, threads);
    noise_augment_planes<1>(args, threads);
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
