// A task is a run of kRun elements of one sample. Tensors of the state's type whose elements lie side by side are read
// in place; others are brought into small arrays of that type which stay in the first-level cache. Each linear form is
// then one vector loop over the terms it has.
#include "edm_fast/solver_step.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include "edm_fast/philox.h"
#include "image_io.h"
#include "independent.h"
#include "noise_block.h"
#include "parallel.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

namespace {

constexpr int64_t kRun = 4 * kNoiseRun;

// A sum of terms with coefficients, without those that are 0, from the first to the last.
template <class State>
struct LinearForm {
    int size = 0;
    State factor[kUpdateTerms];
    const State* term[kUpdateTerms];

    void add(double coefficient, const State* values) {
        if (coefficient == 0) return;
        factor[size] = State(coefficient);
        term[size++] = values;
    }
};

template <int kTerms, class State>
static void evaluate_terms(const LinearForm<State>& form, int64_t count, State* out) {
    State factor[kTerms];
    const State* term[kTerms];
    for (int t = 0; t < kTerms; ++t) {
        factor[t] = form.factor[t];
        term[t] = form.term[t];
    }
    EDM_FAST_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) {
        State sum = factor[0] * term[0][i];
#pragma GCC unroll 8
        for (int t = 1; t < kTerms; ++t) sum = sum + factor[t] * term[t][i];
        out[i] = sum;
    }
}

template <class State>
static void evaluate(const LinearForm<State>& form, int64_t count, State* out) {
    static_assert(kUpdateTerms == 6, "a case for each number of terms");
    switch (form.size) {
        case 0:
            for (int64_t i = 0; i < count; ++i) out[i] = 0;
            return;
        case 1:
            return evaluate_terms<1>(form, count, out);
        case 2:
            return evaluate_terms<2>(form, count, out);
        case 3:
            return evaluate_terms<3>(form, count, out);
        case 4:
            return evaluate_terms<4>(form, count, out);
        case 5:
            return evaluate_terms<5>(form, count, out);
        default:
            return evaluate_terms<6>(form, count, out);
    }
}

// Which of the six update terms any register of the row uses.
struct Uses {
    bool term[kUpdateTerms] = {};

    explicit Uses(const double* row) {
        for (int i = 0; i < kRegisters * kUpdateTerms; ++i) term[i % kUpdateTerms] |= row[kUpdate + i] != 0;
    }
};

template <class State>
constexpr DType dtype_of = sizeof(State) == 8 ? kFloat64 : kFloat32;

// Where the run's elements lie as they are, or nullptr if they must be gathered or converted.
template <class State>
static const State* in_place(const ImageView& view, int64_t sample, int64_t pixels, int64_t first) {
    const bool dense = view.data != nullptr && view.dtype == dtype_of<State> && view.pixel_stride == 1 &&
                       view.channel_stride == pixels;
    return dense ? static_cast<const State*>(view.data) + sample * view.sample_stride + first : nullptr;
}

// The run of a view: in place, or in `buffer`.
template <class State>
static const State* read(const ImageView& view, int64_t sample, int64_t pixels, int64_t first, int64_t count,
                         State* buffer) {
    if (const State* there = in_place<State>(view, sample, pixels, first)) return there;
    load(view, sample, pixels, first, count, buffer);
    return buffer;
}

template <class State>
static bool all_finite(const State* values, int64_t count) {
    int bad = 0;
    for (int64_t i = 0; i < count; ++i) {
        const State size = values[i] < 0 ? -values[i] : values[i];
        bad |= !(size <= std::numeric_limits<State>::max());
    }
    return bad == 0;
}

// Runs of a sample that several threads go through lower it to the same row.
static void lower(int64_t* first_bad, int64_t row) {
    const std::atomic_ref<int64_t> there(*first_bad);
    if (there.load(std::memory_order_relaxed) > row) there.store(row, std::memory_order_relaxed);
}

template <class State>
static void step_run(const SolverStepArgs& args, int64_t index, const Uses& uses, int64_t sample, int64_t first,
                     int64_t count) {
    const double* row = args.table + index * kRowSize;
    alignas(64) State buffer[kUpdateTerms][kRun];
    alignas(64) State updated[kRegisters][kRun];
    alignas(64) State other[2][kRun];
    constexpr int kDenoised = kRegisters, kNoise = kRegisters + 1;
    const State* term[kUpdateTerms] = {};
    const auto view_run = [&](const ImageView& view, State* to) {
        return read(view, sample, args.pixels, first, count, to);
    };

    const bool wants_denoised = uses.term[kDenoised] || args.denoised.data != nullptr;
    for (int i = 0; i < kRegisters; ++i) {
        const bool in_denoised = i == 0 && wants_denoised && row[kDenoisedFromState] != 0;
        const bool in_input = i == 0 && args.net_input.data != nullptr;
        if (uses.term[i] || in_denoised || in_input) term[i] = view_run(args.state[i], buffer[i]);
    }
    if (wants_denoised) {
        LinearForm<State> form;
        form.add(row[kDenoisedFromState], term[0]);
        if (row[kDenoisedFromModel] != 0) form.add(row[kDenoisedFromModel], view_run(args.model_output, other[0]));
        if (row[kDenoisedFromGuide] != 0) form.add(row[kDenoisedFromGuide], view_run(args.guide_output, other[1]));
        evaluate(form, count, buffer[kDenoised]);
        term[kDenoised] = buffer[kDenoised];
        if (args.first_bad != nullptr && !all_finite(buffer[kDenoised], count)) lower(args.first_bad + sample, index);
    }
    if (uses.term[kNoise]) {
        if (args.noise.data == nullptr && args.seeds != nullptr) {
            alignas(64) float z[kRun];
            normals(uint64_t(args.seeds[sample]), uint32_t(row[kDraw]), kDomainSampler, first, count, z);
            std::copy_n(z, count, buffer[kNoise]);
            term[kNoise] = buffer[kNoise];
        } else {
            term[kNoise] = view_run(args.noise, buffer[kNoise]);
        }
    }
    // Everything is computed before the first tensor is written: terms may lie in them.
    LinearForm<State> forms[kRegisters];
    for (int i = 0; i < kRegisters; ++i) {
        for (int t = 0; t < kUpdateTerms; ++t) forms[i].add(row[kUpdate + i * kUpdateTerms + t], term[t]);
        if (forms[i].size > 0) evaluate(forms[i], count, updated[i]);
    }
    if (args.net_input.data != nullptr) {
        const State* x = forms[0].size > 0 ? updated[0] : term[0];
        evaluate_terms<1>(LinearForm<State>{1, {State(row[kNetInputScale])}, {x}}, count, other[0]);
    }
    if (args.denoised.data != nullptr) store(args.denoised, sample, args.pixels, first, count, term[kDenoised]);
    if (args.net_input.data != nullptr) store(args.net_input, sample, args.pixels, first, count, other[0]);
    for (int i = 0; i < kRegisters; ++i) {
        if (forms[i].size > 0 && args.state[i].data != nullptr) {
            store(args.state[i], sample, args.pixels, first, count, updated[i]);
        }
    }
}

}  // namespace

void solver_step(const SolverStepArgs& args, int threads) {
    const int64_t row = args.row + (args.row_offset != nullptr ? *args.row_offset : 0);
    const Uses uses(args.table + row * kRowSize);
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
