// A network as a flat list of steps over one arena: what the CPU executes in one call.
//
// Steps hold the argument structs of the ops, complete but for the number of samples and for the pointers to
// activations; those are references that are resolved for each run. A buffer of the arena lies at offset · samples
// bytes, so one layout serves every batch size.
#pragma once

#include <cstdint>
#include <variant>
#include <vector>

#include "edm_fast/attention.h"
#include "edm_fast/conv2d.h"
#include "edm_fast/group_norm_silu.h"
#include "edm_fast/resample.h"
#include "edm_fast/residual.h"

namespace edm_fast {

enum class Place : int32_t {
    kAbsent = 0,
    kArena = 1,       // offset: bytes per sample
    kInput = 2,       // the network's input
    kOutput = 3,      // its output
    kModulation = 4,  // offset: column of the sample's row of modulations, float32
};

struct Reference {
    Place place = Place::kAbsent;
    int64_t offset = 0;
};

struct ConvStep {
    Conv2dArgs args;
    Reference source[2], residual, out;
};

struct NormStep {
    GroupNormSiluArgs args;
    Reference source[2], pre_bias, scale, shift, out, plain;
};

struct ResampleStep {
    ResampleArgs args;
    Reference x, out;
};

struct ResidualStep {
    ResidualArgs args;
    Reference a, b, out;
};

// qkv [N, tokens, 3 · heads · head_channels], packed as q | k | v; out [N, tokens, heads · head_channels].
struct AttentionStep {
    AttentionArgs args;
    Reference qkv, out;
};

using PlanStep = std::variant<ConvStep, NormStep, ResampleStep, ResidualStep, AttentionStep>;

struct RunPlanArgs {
    const std::vector<PlanStep>* steps;
    int64_t samples;
    int64_t arena_bytes;                // per sample
    int64_t input_bytes, output_bytes;  // per sample
    bool one_thread_per_sample;         // split the batch over the threads rather than every step
    int64_t samples_at_once;            // at most so many go through the steps together (per thread, if split)
    const void* input;                  // [N, H, W, C]
    void* output;                       // [N, H, W, C']
    const float* modulation;            // [N or 1, columns]
    int64_t modulation_stride;          // floats from a sample's row to the next; 0: one row for all
};

namespace cpu {
void run_plan(const RunPlanArgs& args, int threads);

// Bytes of working memory that run_plan would take for these arguments.
int64_t plan_memory(const RunPlanArgs& args, int threads);
}  // namespace cpu

}  // namespace edm_fast
