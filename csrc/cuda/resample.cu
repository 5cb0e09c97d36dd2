// resample: a thread makes one pack of channels of one output pixel at a time; the taps of its neighbours come from the
// caches. Bound by bytes: the larger of the two images.
#include <algorithm>

#include "edm_fast/resample.h"
#include "fir.cuh"
#include "launch.cuh"
#include "packed.cuh"
#include "simt.h"

namespace edm_fast::cuda {

namespace {

constexpr int kThreads = 256;

// The grid's x runs over the packs of a row of output pixels, y over the rows of all samples.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    resample_kernel(const __grid_constant__ ResampleArgs args, const __grid_constant__ Fir fir) {
    const int64_t packs = (args.channels + kPack<T> - 1) / kPack<T>;
    const int64_t row_packs = fir.out_width * packs, rows = args.samples * fir.out_height;
    const int64_t stride = int64_t(gridDim.x) * blockDim.x;
    for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < row_packs; index += stride) {
        const int out_x = int(quotient(index, packs));
        const int64_t channel = (index - out_x * packs) * kPack<T>;
        const int count = int(min(args.channels - channel, int64_t(kPack<T>)));
        for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
            const int64_t sample = quotient(row, fir.out_height);
            const int out_y = int(row - sample * fir.out_height);
            const T* const x =
                static_cast<const T*>(args.x) + sample * args.height * args.width * args.channels + channel;
            float sum[kPack<T>];
            gather(fir, out_y, out_x, sum, [&](int64_t pixel, float (&values)[kPack<T>]) {
                unpack<T>(load_raw<T, kAligned>(x + pixel * args.channels, count), values);
            });
            T* const out = static_cast<T*>(args.out) + (row * fir.out_width + out_x) * args.channels + channel;
            store_raw<T, kAligned>(out, count, pack<T>(sum));
        }
    }
}

// Whole warps, and no more than a row needs.
inline int threads_for(int64_t row_packs) {
    return int(std::min<int64_t>(kThreads, ceil_div(row_packs, kLanes) * kLanes));
}

}  // namespace

void resample(const ResampleArgs& args, int device, void* stream) {
    const Fir fir = make_fir(args.resampling, args.height, args.width);
    if (args.samples == 0 || args.channels == 0 || fir.out_height <= 0 || fir.out_width <= 0) return;
    DeviceGuard guard(device);
    const auto aligned = [&]<class T>() { return aligned_for_packs<T>({args.x, args.out}, {args.channels}); };
    for_storage(args.dtype, aligned, [&]<class T, bool kAligned>() {
        const int64_t row_packs = fir.out_width * ceil_div(args.channels, kPack<T>);
        const dim3 block(unsigned(threads_for(row_packs)));
        const dim3 grid(grid_size(row_packs, block.x), grid_size(args.samples * fir.out_height, 1, max_grid_y));
        EDM_FAST_LAUNCH((resample_kernel<T, kAligned>), grid, block, 0, stream, args, fir);
    });
}

}  // namespace edm_fast::cuda
