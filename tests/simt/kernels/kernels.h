// The example kernels' host functions. They look like those of the project's ops.
#pragma once

#include <cstdint>

namespace edm_fast::cuda {

inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;

struct RowMomentsArgs {
    const float* x;   // [rows, columns]
    float* mean;      // [rows]
    float* variance;  // [rows]
    int rows, columns;
};
void row_moments(const RowMomentsArgs& args, int threads, int device, void* stream);

struct TransposeArgs {
    const float* x;  // [rows, columns]
    float* y;        // [columns, rows]
    int rows, columns;
};
void transpose(const TransposeArgs& args, int device, void* stream);

struct DiffuseArgs {
    const float* x;  // [lines, 128]
    float* y;        // [lines, 128]
    int lines, steps;
};
void diffuse(const DiffuseArgs& args, int device, void* stream);

struct HistogramArgs {
    const unsigned char* values;  // [count]
    unsigned* bins;               // [256], added to
    float* sum;                   // [1], added to
    int* largest;                 // [1], raised
    int count;
};
void histogram(const HistogramArgs& args, int device, void* stream);

struct MatrixProductArgs {
    const uint16_t* a;  // [32, 16 steps] bfloat16
    const uint16_t* b;  // [8, 16 steps] bfloat16
    float* c;           // [32, 8]
    int steps;
};
void matrix_product(const MatrixProductArgs& args, int device, void* stream);

// Every warp primitive on one block of `threads`, for each type that shuffles take. Each row of `out` is one primitive.
inline constexpr int kShuffleRows = 8;
template <class T>
void shuffles(T* out, int threads, int device, void* stream);  // out: [kShuffleRows, threads]

inline constexpr int kVoteRows = 8;
void votes(int* out, int threads, int device, void* stream);  // out: [kVoteRows, threads]

// Kernels with one mistake each.
enum class Fault : int32_t {
    exited_lane_at_shuffle,
    lane_at_barrier_at_shuffle,
    mask_without_own_lane,
    two_barriers,
    shared_write_past_end,
    shared_write_before_start,
    shared_read_past_end,
    global_read_past_end,
    shared_read_uninitialised,
    trap,
};
void run_fault(Fault fault, const float* x, float* out, int device, void* stream);  // x: [64], out: [64]

struct LaunchSizes {
    unsigned grid, block_x, block_y, shared_bytes;
};
void launch_empty(LaunchSizes sizes, int device, void* stream);

}  // namespace edm_fast::cuda
