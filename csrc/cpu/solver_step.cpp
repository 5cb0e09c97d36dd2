// A task is a run of kRun elements of one sample. All tensors of the run are brought into small arrays of the state's
// type that stay in the first-level cache; the linear forms are then plain vector loops, one per non-zero coefficient.
#include "edm_fast/solver_step.h"

#include "edm_fast/philox.h"
#include "image_io.h"
#include "noise_block.h"
#include "parallel.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

namespace {

constexpr int64_t kRun = 8 * kNoiseRun;

// sum = coefficient · term, or sum + coefficient · term once something has been added.
template <class State>
static inline void add_term(double coefficient, const State* term, int64_t count, State* sum, bool* empty) {
    if (coefficient == 0) return;
    const State factor = State(coefficient);
    if (*empty) {
        for (int64_t i = 0; i < count; ++i) sum[i] = factor * term[i];
    } else {
        for (int64_t i = 0; i < count; ++i) sum[i] = sum[i] + factor * term[i];
    }
    *empty = false;
}

// Which of the six update terms any register of the row uses.
struct Uses {
    bool term[kUpdateTerms] = {};

    explicit Uses(const double* row) {
        for (int i = 0; i < kRegisters * kUpdateTerms; ++i) term[i % kUpdateTerms] |= row[kUpdate + i] != 0;
    }
};

template <class State>
static void step_run(const SolverStepArgs& args, const double* row, const Uses& uses, int64_t sample, int64_t first,
                     int64_t count) {
    alignas(64) State terms[kUpdateTerms][kRun];
    alignas(64) State updated[kRun];
    alignas(64) State other[kRun];
    constexpr int kDenoised = kRegisters, kNoise = kRegisters + 1;

    const bool wants_denoised = uses.term[kDenoised] || args.denoised.data != nullptr;
    for (int i = 0; i < kRegisters; ++i) {
        const bool in_denoised = i == 0 && wants_denoised && row[kDenoisedFromState] != 0;
        const bool in_input = i == 0 && args.net_input.data != nullptr;
        if (uses.term[i] || in_denoised || in_input) load(args.state[i], sample, args.pixels, first, count, terms[i]);
    }
    if (wants_denoised) {
        State* denoised = terms[kDenoised];
        bool empty = true;
        add_term(row[kDenoisedFromState], terms[0], count, denoised, &empty);
        if (row[kDenoisedFromModel] != 0) {
            load(args.model_output, sample, args.pixels, first, count, other);
            add_term(row[kDenoisedFromModel], other, count, denoised, &empty);
        }
        if (row[kDenoisedFromGuide] != 0) {
            load(args.guide_output, sample, args.pixels, first, count, other);
            add_term(row[kDenoisedFromGuide], other, count, denoised, &empty);
        }
        if (empty) {
            for (int64_t i = 0; i < count; ++i) denoised[i] = 0;
        }
        if (args.denoised.data != nullptr) store(args.denoised, sample, args.pixels, first, count, denoised);
    }
    if (uses.term[kNoise]) {
        if (args.noise.data == nullptr && args.seeds != nullptr) {
            alignas(64) float z[kRun];
            normals(uint64_t(args.seeds[sample]), uint32_t(row[kDraw]), kDomainSampler, first, count, z);
            for (int64_t i = 0; i < count; ++i) terms[kNoise][i] = State(z[i]);
        } else {
            load(args.noise, sample, args.pixels, first, count, terms[kNoise]);
        }
    }
    for (int i = 0; i < kRegisters; ++i) {
        const double* update = row + kUpdate + i * kUpdateTerms;
        bool empty = true;
        for (int term = 0; term < kUpdateTerms; ++term) add_term(update[term], terms[term], count, updated, &empty);
        if (!empty && args.state[i].data != nullptr) store(args.state[i], sample, args.pixels, first, count, updated);
        if (i == 0 && args.net_input.data != nullptr) {
            const State scale = State(row[kNetInputScale]);
            const State* x = empty ? terms[0] : updated;
            for (int64_t j = 0; j < count; ++j) other[j] = scale * x[j];
            store(args.net_input, sample, args.pixels, first, count, other);
        }
    }
}

}  // namespace

void solver_step(const SolverStepArgs& args, int threads) {
    const double* row = args.table + (args.row + (args.row_offset != nullptr ? *args.row_offset : 0)) * kRowSize;
    const Uses uses(row);
    const int64_t elements = args.channels * args.pixels;
    const int64_t runs = (elements + kRun - 1) / kRun;
    // Small batches are not worth waking threads for: a region costs as much as some ten thousand elements,
    // and far more where another process holds the second core.
    const int useful = args.samples * elements < 65536 ? 1 : threads;
    parallel_for(args.samples * runs, useful, [&](int64_t task) {
        const int64_t first = task % runs * kRun;
        const int64_t count = elements - first < kRun ? elements - first : kRun;
        if (args.state_dtype == kFloat64) {
            step_run<double>(args, row, uses, task / runs, first, count);
        } else {
            step_run<float>(args, row, uses, task / runs, first, count);
        }
    });
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
