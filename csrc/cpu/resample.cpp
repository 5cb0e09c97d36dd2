#include "resample.h"

#include <algorithm>

#include "network_ops.h"
#include "scratch.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

std::size_t resample_scratch(const ResampleArgs&) {
    return 0;
}

void resample(const ResampleArgs& args, void*, const Team& team) {
    const int64_t out_height = resampled_size(args.resampling, args.height);
    const int64_t out_width = resampled_size(args.resampling, args.width);
    const int64_t bands = band_count(args.resampling, args.height, args.width, out_height, out_width);
    const int64_t image = args.height * args.width * args.channels, out_image = out_height * out_width * args.channels;
    const Range own = team.share(args.samples * bands);
    with_storage(args.dtype, [&](auto zero) {
        using T = decltype(zero);
        for (int64_t unit = own.begin; unit < own.end; ++unit) {
            const int64_t sample = unit / bands;
            const T* x = static_cast<const T*>(args.x) + sample * image;
            T* out = static_cast<T*>(args.out) + sample * out_image;
            resample_band<T, T>(args.resampling, {x, args.height, args.width, args.channels}, args.channels, Identity{},
                                {out, out_height, out_width, args.channels}, unit % bands);
        }
    });
}

void resample(const ResampleArgs& args, int threads) {
    const int64_t pixels = std::max(args.height * args.width, resampled_size(args.resampling, args.height) *
                                                                  resampled_size(args.resampling, args.width));
    run_team(useful_threads(args.samples * args.channels * pixels, threads),
             [&](const Team& team) { resample(args, nullptr, team); });
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
