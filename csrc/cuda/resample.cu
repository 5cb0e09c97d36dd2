// resample: a thread makes one pack of channels of one output pixel at a time; the taps of its neighbours come from the
// caches. Bound by bytes: the larger of the two images.
#include "edm_fast/resample.h"
#include "fir.cuh"
#include "launch.cuh"
#include "packed.cuh"
#include "simt.h"

namespace edm_fast::cuda {

namespace {

constexpr int kThreads = 256;

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    resample_kernel(const __grid_constant__ ResampleArgs args, const __grid_constant__ Fir fir) {
    const int64_t packs = (args.channels + kPack<T> - 1) / kPack<T>;
    const int64_t out_pixels = int64_t(fir.out_height) * fir.out_width;
    const int64_t total = args.samples * out_pixels * packs;
    const int64_t stride = int64_t(gridDim.x) * kThreads;
    for (int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x; index < total; index += stride) {
        const int64_t row = quotient(index, packs);
        const int64_t channel = (index - row * packs) * kPack<T>;
        const int count = int(min(args.channels - channel, int64_t(kPack<T>)));
        const int64_t sample = quotient(row, out_pixels);
        const T* const x = static_cast<const T*>(args.x) + sample * args.height * args.width * args.channels + channel;
        float sum[kPack<T>];
        gather(fir, row - sample * out_pixels, sum, [&](int64_t pixel, float (&values)[kPack<T>]) {
            unpack<T>(load_raw<T, kAligned>(x + pixel * args.channels, count), values);
        });
        store_raw<T, kAligned>(static_cast<T*>(args.out) + row * args.channels + channel, count, pack<T>(sum));
    }
}

}  // namespace

void resample(const ResampleArgs& args, int device, void* stream) {
    const Fir fir = make_fir(args.resampling, args.height, args.width);
    const int64_t pixels = int64_t(fir.out_height) * fir.out_width;
    if (args.samples == 0 || args.channels == 0 || pixels <= 0) return;
    DeviceGuard guard(device);
    const auto aligned = [&]<class T>() { return aligned_for_packs<T>({args.x, args.out}, {args.channels}); };
    for_storage(args.dtype, aligned, [&]<class T, bool kAligned>() {
        const dim3 grid(grid_size(args.samples * pixels * ceil_div(args.channels, kPack<T>), kThreads));
        EDM_FAST_LAUNCH((resample_kernel<T, kAligned>), grid, dim3(kThreads), 0, stream, args, fir);
    });
}

}  // namespace edm_fast::cuda
