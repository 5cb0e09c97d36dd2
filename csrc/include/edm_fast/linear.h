// linear: out[r, o] = f(sum_i x[r, i] · weight[o, i] + bias[o] + addend[r, o]) in float32, f the identity or SiLU.
//
// Each row's sums have a fixed order, so a row's result does not depend on the rows around it.
#pragma once

#include <cstdint>

namespace edm_fast {

struct LinearArgs {
    int64_t rows, in_features, out_features;
    const float* x;       // [rows, in_features] dense
    const float* weight;  // [out_features, in_features], packed by pack_conv2d as a direct 1x1 kernel
    const float* bias;    // [out_features], or nullptr
    const float* addend;  // [rows, out_features] dense, or nullptr
    bool silu;
    float* out;  // [rows, out_features] dense
};

namespace cpu {
void linear(const LinearArgs& args, int threads);
}

}  // namespace edm_fast
