// The public cpu:: functions: each forwards to the variant compiled for this processor.
#include <atomic>
#include <stdexcept>

#include "edm_fast/attention.h"
#include "edm_fast/randn.h"
#include "edm_fast/solver_step.h"
#include "isa.h"

namespace edm_fast::cpu {

namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

bool has(Isa isa) {
#if defined(EDM_FAST_X86_VARIANTS)
    switch (isa) {
        case Isa::kBaseline:
            return true;
        case Isa::kAvx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
        case Isa::kAvx512:
            return has(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }
    return false;
#else
    return isa == Isa::kBaseline;
#endif
}

Isa widest() {
    for (Isa isa : {Isa::kAvx512, Isa::kAvx2}) {
        if (has(isa)) return isa;
    }
    return Isa::kBaseline;
}

std::atomic<Isa>& chosen() {
    static std::atomic<Isa> isa{widest()};
    return isa;
}

}  // namespace

Isa isa() {
    return chosen().load(std::memory_order_relaxed);
}

std::string isa_name() {
    return kNames[int(isa())];
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
        if (has(isa)) names.emplace_back(kNames[int(isa)]);
    }
    return names;
}

void use_isa(const std::string& name) {
    std::string known;
    for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
        if (!has(isa)) continue;
        if (name == kNames[int(isa)]) {
            chosen().store(isa);
            return;
        }
        known += std::string(known.empty() ? "" : ", ") + kNames[int(isa)];
    }
    throw std::invalid_argument("name: '" + name + "' is not an instruction set of this machine; it has " + known);
}

#if defined(EDM_FAST_X86_VARIANTS)
#define EDM_FAST_CPU_OP(op, Args)                   \
    namespace baseline {                            \
    void op(const Args& args, int threads);         \
    }                                               \
    namespace avx2 {                                \
    void op(const Args& args, int threads);         \
    }                                               \
    namespace avx512 {                              \
    void op(const Args& args, int threads);         \
    }                                               \
    void op(const Args& args, int threads) {        \
        switch (isa()) {                            \
            case Isa::kBaseline:                    \
                return baseline::op(args, threads); \
            case Isa::kAvx2:                        \
                return avx2::op(args, threads);     \
            case Isa::kAvx512:                      \
                return avx512::op(args, threads);   \
        }                                           \
    }
#else
#define EDM_FAST_CPU_OP(op, Args)            \
    namespace baseline {                     \
    void op(const Args& args, int threads);  \
    }                                        \
    void op(const Args& args, int threads) { \
        baseline::op(args, threads);         \
    }
#endif

EDM_FAST_CPU_OP(randn, RandnArgs)
EDM_FAST_CPU_OP(solver_step, SolverStepArgs)
EDM_FAST_CPU_OP(attention, AttentionArgs)
EDM_FAST_CPU_OP(attention_grad, AttentionGradArgs)

}  // namespace edm_fast::cpu
