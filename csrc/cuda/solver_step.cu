// solver_step: a thread takes four consecutive elements of one sample (one Philox block) through the whole row, in
// registers: every tensor that the row names is read once, every one that it changes is written once. Of RGB images a
// block has all channels, so that the network's images go by whole sectors (see rgb_io.cuh). Bound by bytes; a
// CIFAR-10 image is 12 KiB of float64 state, so small batches are bound by the launch.
#include "edm_fast/normal.h"
#include "edm_fast/solver_step.h"
#include "image_io.cuh"
#include "launch.cuh"
#include "rgb_io.cuh"
#include "simt.h"

namespace edm_fast::cuda {

namespace {

// Of RGB images one tile.
constexpr int kThreads = 96;
// That a multiprocessor shall hold: as many as there are registers for.
template <class State, int kPlanes>
constexpr int kBlocks = sizeof(State) == sizeof(double) && kPlanes == 1 ? 5 : 6;
constexpr int kDenoised = kRegisters, kNoise = kRegisters + 1;

// sum = coefficient · term, or sum + coefficient · term once something has been added.
template <class State>
__device__ __forceinline__ void add_term(double coefficient, const State (&term)[kQuad], State (&sum)[kQuad],
                                         bool& empty) {
    if (coefficient == 0) return;
    const State factor = State(coefficient);
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
        const State product = factor * term[i];
        sum[i] = empty ? product : sum[i] + product;
    }
    empty = false;
}

// Bit t is set if any register of the row uses term t.
__device__ __forceinline__ unsigned used_terms(const double* row) {
    unsigned used = 0;
#pragma unroll
    for (int i = 0; i < kRegisters * kUpdateTerms; ++i) used |= unsigned(row[kUpdate + i] != 0) << (i % kUpdateTerms);
    return used;
}

// Registers have the type of the arithmetic.
template <class State>
__device__ __forceinline__ void load_state(const ImageView& view, int64_t sample, const QuadPlace& place,
                                           State (&out)[kQuad]) {
    if (view.data == nullptr) {
        fill_with_nan(out);
    } else {
        load_quad_as<State>(view, sample, place, out);
    }
}

template <class State>
__device__ __forceinline__ bool all_finite(const State (&values)[kQuad]) {
    bool finite = true;
#pragma unroll
    for (int i = 0; i < kQuad; ++i) finite = finite && values[i] - values[i] == State(0);
    return finite;
}

// By all threads of a block together.
template <class State, int kPlanes>
__device__ __forceinline__ void step_quad(const SolverStepArgs& args, int64_t index, unsigned used, int64_t sample,
                                          const QuadPlace& place, float* tiles) {
    const double* row = args.table + index * kRowSize;
    State terms[kUpdateTerms][kQuad] = {};

    const bool wants_denoised = (used >> kDenoised & 1u) != 0 || args.denoised.data != nullptr;
    const bool wants_state = args.net_input.data != nullptr || (wants_denoised && row[kDenoisedFromState] != 0);
#pragma unroll
    for (int i = 0; i < kRegisters; ++i) {
        if ((used >> i & 1u) != 0 || (i == 0 && wants_state)) load_state(args.state[i], sample, place, terms[i]);
    }
    if (wants_denoised) {
        State output[kQuad] = {}, guide[kQuad] = {};
        const bool has_output = row[kDenoisedFromModel] != 0, has_guide = row[kDenoisedFromGuide] != 0;
        if (has_output) fetch_quad<kPlanes>(args.model_output, sample, place, output);
        if (has_guide) fetch_quad<kPlanes>(args.guide_output, sample, place, guide);
        bool empty = true;
        add_term(row[kDenoisedFromState], terms[0], terms[kDenoised], empty);
        if (has_output) {
            exchange_quad<kPlanes>(args.model_output, sample, place, tiles, output);
            add_term(row[kDenoisedFromModel], output, terms[kDenoised], empty);
        }
        if (has_guide) {
            exchange_quad<kPlanes>(args.guide_output, sample, place, tiles, guide);
            add_term(row[kDenoisedFromGuide], guide, terms[kDenoised], empty);
        }
        // Threads of a sample all store the same row.
        if (args.first_bad != nullptr && !all_finite(terms[kDenoised]) && args.first_bad[sample] > index) {
            args.first_bad[sample] = index;
        }
    }
    if ((used >> kNoise & 1u) != 0) {
        if (args.noise.data == nullptr && args.seeds != nullptr) {
            const Normals normals = normal_block(uint64_t(args.seeds[sample]), uint64_t(place.first) / kQuad,
                                                 uint32_t(row[kDraw]), kDomainSampler);
            const float z[kQuad] = {normals.x, normals.y, normals.z, normals.w};
#pragma unroll
            for (int i = 0; i < kQuad; ++i) terms[kNoise][i] = State(z[i]);
        } else {
            load_quad(args.noise, sample, place, terms[kNoise]);
        }
    }
    // Everything has been read: what is written may lie in it.
    if (args.denoised.data != nullptr) store_quad(args.denoised, sample, place, terms[kDenoised]);
#pragma unroll
    for (int i = 0; i < kRegisters; ++i) {
        const double* update = row + kUpdate + i * kUpdateTerms;
        State updated[kQuad] = {};
        bool empty = true;
#pragma unroll
        for (int term = 0; term < kUpdateTerms; ++term) add_term(update[term], terms[term], updated, empty);
        if (!empty && args.state[i].data != nullptr) store_quad_as<State>(args.state[i], sample, place, updated);
        if (i == 0 && args.net_input.data != nullptr) {
            const State scale = State(row[kNetInputScale]);
            State input[kQuad];
#pragma unroll
            for (int j = 0; j < kQuad; ++j) input[j] = scale * (empty ? terms[0][j] : updated[j]);
            write_quad<kPlanes>(args.net_input, sample, place, tiles, input);
        }
    }
}

template <class State, int kPlanes>
__global__ void __launch_bounds__(kThreads, kBlocks<State, kPlanes>) solver_step_kernel(SolverStepArgs args) {
    using Steps = QuadSteps<kPlanes, kThreads>;
    float* const tiles = simt::dynamic_shared<float>();
    const int64_t row = args.row + (args.row_offset != nullptr ? *args.row_offset : 0);
    const unsigned used = used_terms(args.table + row * kRowSize);
    const int64_t stride = int64_t(gridDim.x) * Steps::kElements, end = Steps::end(args.channels, args.pixels);
    for (int64_t sample = blockIdx.y; sample < args.samples; sample += gridDim.y) {
        for (int64_t step = Steps::begin(blockIdx.x); step < end; step += stride) {
            const QuadPlace place = Steps::place(step, args.channels, args.pixels);
            step_quad<State, kPlanes>(args, row, used, sample, place, tiles);
        }
    }
}

}  // namespace

void solver_step(const SolverStepArgs& args, int device, void* stream) {
    if (args.samples == 0 || args.channels * args.pixels == 0) return;
    DeviceGuard guard(device);
    const auto launch_with = [&]<class State, int kPlanes>() {
        using Steps = QuadSteps<kPlanes, kThreads>;
        const dim3 grid = quad_grid(args.samples, Steps::end(args.channels, args.pixels), Steps::kElements);
        EDM_FAST_LAUNCH((solver_step_kernel<State, kPlanes>), grid, dim3(kThreads), Steps::kTileFloats * sizeof(float),
                        stream, args);
    };
    const auto launch_on = [&]<class State>() {
        if (planes_of(args.channels, args.pixels) == kRgb) return launch_with.template operator()<State, kRgb>();
        launch_with.template operator()<State, 1>();
    };
    if (args.state_dtype == kFloat64) {
        launch_on.template operator()<double>();
    } else {
        launch_on.template operator()<float>();
    }
}

}  // namespace edm_fast::cuda
