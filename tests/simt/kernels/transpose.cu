// Transpose by tiles of 32 × 32 with a block of 32 × 8 threads. A tile's rows have 33 columns in shared memory, so that
// a column lies in 32 different banks.
#include "kernels.h"
#include "launch.cuh"
#include "simt.h"

namespace edm_fast::cuda {

namespace {

constexpr int kTile = 32, kRowsOfThreads = 8;

template <class Element, int tile>
struct Tile {
    Element at[tile][tile + 1];
};

template <class Element, int tile>
__global__ void __launch_bounds__(kTile* kRowsOfThreads)
    transpose_kernel(const Element* __restrict__ x, Element* __restrict__ y, int rows, int columns) {
    Tile<Element, tile>& shared = *simt::dynamic_shared<Tile<Element, tile>>();
    const int first_row = blockIdx.y * tile, first_column = blockIdx.x * tile;
    for (int i = threadIdx.y; i < tile; i += blockDim.y) {
        const int row = first_row + i, column = first_column + threadIdx.x;
        if (row < rows && column < columns) shared.at[i][threadIdx.x] = __ldg(x + int64_t(row) * columns + column);
    }
#if !defined(WITHOUT_BARRIER_4)
    __syncthreads();
#endif
    for (int i = threadIdx.y; i < tile; i += blockDim.y) {
        const int row = first_column + i, column = first_row + threadIdx.x;
        if (row < columns && column < rows) y[int64_t(row) * rows + column] = shared.at[threadIdx.x][i];
    }
}

}  // namespace

void transpose(const TransposeArgs& args, int device, void* stream) {
    DeviceGuard guard(device);
    const dim3 grid(grid_size(args.columns, kTile), grid_size(args.rows, kTile, 65535));
    EDM_FAST_LAUNCH((transpose_kernel<float, kTile>), grid, dim3(kTile, kRowsOfThreads), sizeof(Tile<float, kTile>),
                    stream, args.x, args.y, args.rows, args.columns);
}

}  // namespace edm_fast::cuda
