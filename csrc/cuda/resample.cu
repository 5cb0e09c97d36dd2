// resample: a thread makes one pack of channels of one output pixel at a time, upwards of the four that have the same
// inputs; the taps of its neighbours come from the caches. Bound by bytes: the larger of the two images.
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

// Upwards by kTaps. The grid's x runs over the packs of a row of blocks of 2x2 outputs, y over the rows of all samples.
template <class T, bool kAligned, int kTaps>
__global__ void __launch_bounds__(kThreads)
    resample_up_kernel(const __grid_constant__ ResampleArgs args, const __grid_constant__ Fir fir) {
    const int64_t packs = (args.channels + kPack<T> - 1) / kPack<T>;
    const int64_t row_packs = up_blocks(fir, fir.out_width) * packs;
    const int64_t block_rows = up_blocks(fir, fir.out_height), rows = args.samples * block_rows;
    const int64_t stride = int64_t(gridDim.x) * blockDim.x;
    for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < row_packs; index += stride) {
        const int64_t block_x = quotient(index, packs);
        const int64_t channel = (index - block_x * packs) * kPack<T>;
        const int count = int(min(args.channels - channel, int64_t(kPack<T>)));
        for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
            const int64_t sample = quotient(row, block_rows);
            const T* const x =
                static_cast<const T*>(args.x) + sample * args.height * args.width * args.channels + channel;
            T* const out =
                static_cast<T*>(args.out) + sample * fir.out_height * fir.out_width * args.channels + channel;
            gather_four<T, kTaps>(
                fir, int(row - sample * block_rows), int(block_x),
                [&](int64_t pixel) { return load_raw<T, kAligned>(x + pixel * args.channels, count); },
                [&](int out_y, int out_x, const uint4& raw) {
                    const int64_t pixel = int64_t(out_y) * fir.out_width + out_x;
                    store_raw<T, kAligned>(out + pixel * args.channels, count, raw);
                });
        }
    }
}

// Whole warps, and no more than a row needs.
unsigned threads_for(int64_t row_packs) {
    return unsigned(std::min<int64_t>(kThreads, ceil_div(row_packs, kLanes) * kLanes));
}

dim3 row_grid(int64_t rows, int64_t row_packs) {
    return dim3(grid_size(row_packs, threads_for(row_packs)), grid_size(rows, 1, max_grid_y));
}

}  // namespace

void resample(const ResampleArgs& args, int device, void* stream) {
    const Fir fir = make_fir(args.resampling, args.height, args.width);
    if (args.samples == 0 || args.channels == 0 || fir.out_height <= 0 || fir.out_width <= 0) return;
    DeviceGuard guard(device);
    const auto aligned = [&]<class T>() { return aligned_for_packs<T>({args.x, args.out}, {args.channels}); };
    for_storage(args.dtype, aligned, [&]<class T, bool kAligned>() {
        const int64_t packs = ceil_div(args.channels, kPack<T>);
        const auto launch_up = [&]<int kTaps>() {
            const int64_t rows = args.samples * up_blocks(fir, fir.out_height);
            const int64_t row_packs = up_blocks(fir, fir.out_width) * packs;
            EDM_FAST_LAUNCH((resample_up_kernel<T, kAligned, kTaps>), row_grid(rows, row_packs),
                            dim3(threads_for(row_packs)), 0, stream, args, fir);
        };
        if (fir.up && fir.taps == 2) return launch_up.template operator()<2>();
        if (fir.up && fir.taps == 4) return launch_up.template operator()<4>();
        const int64_t row_packs = fir.out_width * packs;
        EDM_FAST_LAUNCH((resample_kernel<T, kAligned>), row_grid(args.samples * fir.out_height, row_packs),
                        dim3(threads_for(row_packs)), 0, stream, args, fir);
    });
}

}  // namespace edm_fast::cuda
