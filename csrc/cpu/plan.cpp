// Two ways to share the work. Large networks: the team goes through the steps together, each step split over it. Small
// ones: every thread takes a part of the batch through all steps by itself, and nobody waits for anybody. An op
// computes a sample the same way however the work is split, so the result is the same to the bit.
#include "edm_fast/plan.h"

#include <algorithm>

#include "attention_team.h"
#include "conv2d_team.h"
#include "network_ops.h"
#include "scratch.h"
#include "team.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

namespace {

constexpr int64_t kAlignment = 4096;

// The addresses of one run for a part of the batch.
struct Binding {
    int64_t samples;
    char* arena;
    const char* input;
    char* output;
    const float* modulation;
    int64_t modulation_stride;

    void* at(const Reference& reference) const {
        switch (reference.place) {
            case Place::kArena:
                return arena + reference.offset * samples;
            case Place::kInput:
                return const_cast<char*>(input);
            case Place::kOutput:
                return output;
            case Place::kModulation:
                return const_cast<float*>(modulation + reference.offset);
            case Place::kAbsent:
                break;
        }
        return nullptr;
    }
};

static Conv2dArgs bind(const ConvStep& step, const Binding& binding) {
    Conv2dArgs args = step.args;
    args.samples = binding.samples;
    args.source[0] = binding.at(step.source[0]);
    args.source[1] = binding.at(step.source[1]);
    args.residual = binding.at(step.residual);
    args.out = binding.at(step.out);
    return args;
}

// A fixed pre_bias, the same for all samples, stands in the step itself.
static GroupNormSiluArgs bind(const NormStep& step, const Binding& binding) {
    GroupNormSiluArgs args = step.args;
    args.samples = binding.samples;
    args.source[0] = binding.at(step.source[0]);
    args.source[1] = binding.at(step.source[1]);
    if (step.pre_bias.place != Place::kAbsent) {
        args.pre_bias = static_cast<const float*>(binding.at(step.pre_bias));
        args.pre_bias_stride = binding.modulation_stride;
    }
    args.scale = static_cast<const float*>(binding.at(step.scale));
    args.shift = static_cast<const float*>(binding.at(step.shift));
    args.modulation_stride = binding.modulation_stride;
    args.out = binding.at(step.out);
    args.plain = binding.at(step.plain);
    return args;
}

static ResampleArgs bind(const ResampleStep& step, const Binding& binding) {
    ResampleArgs args = step.args;
    args.samples = binding.samples;
    args.x = binding.at(step.x);
    args.out = binding.at(step.out);
    return args;
}

static ResidualArgs bind(const ResidualStep& step, const Binding& binding) {
    ResidualArgs args = step.args;
    args.samples = binding.samples;
    args.a = binding.at(step.a);
    args.b = binding.at(step.b);
    args.out = binding.at(step.out);
    return args;
}

static AttentionArgs bind(const AttentionStep& step, const Binding& binding) {
    AttentionArgs args = step.args;
    const int64_t bytes = args.dtype == kFloat32 ? 4 : 2;
    const int64_t channels = args.heads * args.head_channels;
    args.samples = binding.samples;
    char* qkv = static_cast<char*>(binding.at(step.qkv));
    args.q = {qkv, 3 * channels * args.tokens, 3 * channels, args.head_channels, 1};
    args.k = args.v = args.q;
    args.k.data = qkv + channels * bytes;
    args.v.data = qkv + 2 * channels * bytes;
    args.out = {binding.at(step.out), channels * args.tokens, channels, args.head_channels, 1};
    return args;
}

static std::size_t step_scratch(const Conv2dArgs& args, int threads) {
    return conv2d_scratch(args, threads);
}
static std::size_t step_scratch(const GroupNormSiluArgs& args, int) {
    return group_norm_silu_scratch(args);
}
static std::size_t step_scratch(const ResampleArgs& args, int) {
    return resample_scratch(args);
}
static std::size_t step_scratch(const ResidualArgs& args, int) {
    return residual_scratch(args);
}
static std::size_t step_scratch(const AttentionArgs& args, int threads) {
    return attention_scratch(args, threads);
}

static void run_step(const Conv2dArgs& args, void* scratch, const Team& team) {
    conv2d(args, scratch, team);
}
static void run_step(const GroupNormSiluArgs& args, void* scratch, const Team& team) {
    group_norm_silu(args, scratch, team);
}
static void run_step(const ResampleArgs& args, void* scratch, const Team& team) {
    resample(args, scratch, team);
}
static void run_step(const ResidualArgs& args, void* scratch, const Team& team) {
    residual(args, scratch, team);
}
static void run_step(const AttentionArgs& args, void* scratch, const Team& team) {
    attention(args, scratch, team);
}

static int64_t round_to_pages(int64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Memory for `samples` samples at once and a team of `threads`: the arena, and after it the largest step's scratch.
struct Memory {
    int64_t arena, scratch;

    Memory(const RunPlanArgs& args, int64_t samples, int threads) : arena(round_to_pages(args.arena_bytes * samples)) {
        std::size_t largest = 0;
        // Sizes do not depend on addresses; these only must be there.
        char* anywhere = reinterpret_cast<char*>(kAlignment);
        const Binding nowhere{samples, anywhere, anywhere, anywhere, reinterpret_cast<const float*>(anywhere), 0};
        for (const PlanStep& step : *args.steps) {
            largest = std::max(
                largest,
                std::visit([&](const auto& typed) { return step_scratch(bind(typed, nowhere), threads); }, step));
        }
        scratch = round_to_pages(int64_t(largest));
    }

    int64_t total() const { return arena + scratch; }
};

static void run_part(const RunPlanArgs& args, int64_t first, int64_t samples, const Memory& memory, char* base,
                     const Team& team) {
    const Binding binding{samples,
                          base,
                          static_cast<const char*>(args.input) + first * args.input_bytes,
                          static_cast<char*>(args.output) + first * args.output_bytes,
                          args.modulation + first * args.modulation_stride,
                          args.modulation_stride};
    for (const PlanStep& step : *args.steps) {
        std::visit([&](const auto& typed) { run_step(bind(typed, binding), base + memory.arena, team); }, step);
        team.barrier();
    }
}

struct Schedule {
    bool split;
    int teams;  // 1, or a team of one per thread
    int64_t at_once;
    Memory memory;

    Schedule(const RunPlanArgs& args, int threads)
        : split(args.one_thread_per_sample && threads > 1 && args.samples > 1),
          teams(split ? int(std::min<int64_t>(threads, args.samples)) : 1),
          at_once(std::min(args.samples_at_once, (args.samples + teams - 1) / teams)),
          memory(args, at_once, split ? 1 : threads) {}
};

}  // namespace

void run_plan(const RunPlanArgs& args, int threads) {
    if (args.samples == 0) return;
    threads = std::max(threads, 1);
    const Schedule schedule(args, threads);
    const Memory& memory = schedule.memory;
    char* base = static_cast<char*>(scratch(std::size_t(memory.total() * schedule.teams)));
    run_team(schedule.split ? schedule.teams : threads, [&](const Team& team) {
        // A team may come out smaller than asked for; the share covers the batch all the same.
        const Range range = schedule.split ? team.share(args.samples) : Range{0, args.samples};
        char* own = schedule.split ? base + team.rank * memory.total() : base;
        const Team members = schedule.split ? Team{} : team;
        const int64_t count = range.end - range.begin;
        const int64_t parts = (count + schedule.at_once - 1) / schedule.at_once;
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t begin = range.begin + count * part / parts, end = range.begin + count * (part + 1) / parts;
            run_part(args, begin, end - begin, memory, own, members);
        }
    });
}

int64_t plan_memory(const RunPlanArgs& args, int threads) {
    if (args.samples == 0) return 0;
    const Schedule schedule(args, std::max(threads, 1));
    return schedule.memory.total() * schedule.teams;
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
