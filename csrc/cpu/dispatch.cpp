// The public cpu:: functions: each forwards to the variant compiled for this processor.
#include <algorithm>
#include <atomic>
#include <iterator>
#include <stdexcept>

#if defined(EDM_FAST_X86_VARIANTS)
#include <cpuid.h>
#endif
#if defined(EDM_FAST_TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "edm_fast/attention.h"
#include "edm_fast/augment.h"
#include "edm_fast/conv2d.h"
#include "edm_fast/denoising_loss.h"
#include "edm_fast/dropout.h"
#include "edm_fast/group_norm_silu.h"
#include "edm_fast/linear.h"
#include "edm_fast/noise_augment.h"
#include "edm_fast/plan.h"
#include "edm_fast/randn.h"
#include "edm_fast/resample.h"
#include "edm_fast/residual.h"
#include "edm_fast/solver_step.h"
#include "isa.h"

namespace edm_fast::cpu {

namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx_bf16"};
constexpr Isa kWidestFirst[] = {Isa::kAmx, Isa::kAvx512Bf16, Isa::kAvx512, Isa::kAvx2, Isa::kBaseline};

#if defined(EDM_FAST_X86_VARIANTS)
// Conversions between float16 and float32. Not every compiler's __builtin_cpu_supports knows them.
bool converts_halves() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}

// Tiles need the processor, the system's context switches, and a request of the process to Linux.
bool tiles_allowed() {
#if defined(EDM_FAST_TILES)
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kOsXsave = 1u << 27, kTileState = 3u << 17;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & kOsXsave) == 0) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
    unsigned low = 0, high = 0;
    asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & kTileState) != kTileState) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}
#endif

bool has(Isa isa) {
#if defined(EDM_FAST_X86_VARIANTS)
    switch (isa) {
        case Isa::kBaseline:
            return true;
        case Isa::kAvx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && converts_halves();
        case Isa::kAvx512:
            return has(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        case Isa::kAvx512Bf16:
            return has(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16");
        case Isa::kAmx: {
            static const bool allowed = tiles_allowed();
            return has(Isa::kAvx512Bf16) && allowed;
        }
    }
    return false;
#else
    return isa == Isa::kBaseline;
#endif
}

Isa widest() {
    return *std::find_if(std::begin(kWidestFirst), std::end(kWidestFirst), has);
}

std::atomic<Isa>& chosen() {
    static std::atomic<Isa> isa{widest()};
    return isa;
}

}  // namespace

Isa isa() {
    return chosen().load(std::memory_order_relaxed);
}

bool multiplies_pairs() {
    return isa() == Isa::kAvx512Bf16 || isa() == Isa::kAmx;
}

bool multiplies_tiles() {
    return isa() == Isa::kAmx;
}

std::string isa_name() {
    return kNames[int(isa())];
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (Isa isa : kWidestFirst) {
        if (has(isa)) names.emplace(names.begin(), kNames[int(isa)]);
    }
    return names;
}

void use_isa(const std::string& name) {
    std::string known;
    for (Isa isa : kWidestFirst) {
        if (!has(isa)) continue;
        if (name == kNames[int(isa)]) {
            chosen().store(isa);
            return;
        }
        known += std::string(known.empty() ? "" : ", ") + kNames[int(isa)];
    }
    throw std::invalid_argument("name: '" + name + "' is not an instruction set of this machine; it has " + known);
}

// Declares the variants of a function and defines the public one. PARAMETERS and ARGUMENTS come in parentheses.
#if defined(EDM_FAST_X86_VARIANTS)
#define EDM_FAST_CPU_FUNCTION(Result, name, PARAMETERS, ARGUMENTS) \
    namespace baseline {                                           \
    Result name PARAMETERS;                                        \
    }                                                              \
    namespace avx2 {                                               \
    Result name PARAMETERS;                                        \
    }                                                              \
    namespace avx512 {                                             \
    Result name PARAMETERS;                                        \
    }                                                              \
    Result name PARAMETERS {                                       \
        switch (isa()) {                                           \
            case Isa::kAvx2:                                       \
                return avx2::name ARGUMENTS;                       \
            case Isa::kAvx512:                                     \
            case Isa::kAvx512Bf16:                                 \
            case Isa::kAmx:                                        \
                return avx512::name ARGUMENTS;                     \
            default:                                               \
                return baseline::name ARGUMENTS;                   \
        }                                                          \
    }
#else
#define EDM_FAST_CPU_FUNCTION(Result, name, PARAMETERS, ARGUMENTS) \
    namespace baseline {                                           \
    Result name PARAMETERS;                                        \
    }                                                              \
    Result name PARAMETERS {                                       \
        return baseline::name ARGUMENTS;                           \
    }
#endif
#define EDM_FAST_CPU_OP(op, Args) EDM_FAST_CPU_FUNCTION(void, op, (const Args& args, int threads), (args, threads))

EDM_FAST_CPU_OP(randn, RandnArgs)
EDM_FAST_CPU_OP(solver_step, SolverStepArgs)
EDM_FAST_CPU_OP(conv2d, Conv2dArgs)
EDM_FAST_CPU_OP(conv2d_weight_grad, Conv2dWeightGradArgs)
EDM_FAST_CPU_OP(pack_conv2d, PackConv2dArgs)
EDM_FAST_CPU_OP(linear, LinearArgs)
EDM_FAST_CPU_FUNCTION(int64_t, conv2d_packed_size,
                      (int64_t in_channels, int64_t out_channels, int32_t kernel, ConvAlgorithm algorithm,
                       DType factors),
                      (in_channels, out_channels, kernel, algorithm, factors))
EDM_FAST_CPU_OP(run_plan, RunPlanArgs)
EDM_FAST_CPU_FUNCTION(int64_t, plan_memory, (const RunPlanArgs& args, int threads), (args, threads))
EDM_FAST_CPU_OP(attention, AttentionArgs)
EDM_FAST_CPU_OP(group_norm_silu, GroupNormSiluArgs)
EDM_FAST_CPU_OP(group_norm_silu_grad, GroupNormSiluGradArgs)
EDM_FAST_CPU_OP(resample, ResampleArgs)
EDM_FAST_CPU_OP(residual, ResidualArgs)
EDM_FAST_CPU_OP(augment, AugmentArgs)
EDM_FAST_CPU_OP(attention_grad, AttentionGradArgs)
EDM_FAST_CPU_OP(noise_augment, NoiseAugmentArgs)
EDM_FAST_CPU_OP(denoising_loss, DenoisingLossArgs)
EDM_FAST_CPU_OP(dropout, DropoutArgs)

}  // namespace edm_fast::cpu
