// residual: the end of a residual branch, out = (a + b + bias) · scale, for channels-last images [N, P, C].
#pragma once

#include <cstdint>

#include "edm_fast/dtypes.h"

namespace edm_fast {

struct ResidualArgs {
    int64_t samples, pixels, channels;
    DType dtype;        // float32, float16 or bfloat16, of a, b and out
    const void* a;      // [N, P, C] dense; may be out
    const void* b;      // [N, P, C] dense, or nullptr
    const float* bias;  // [C], or nullptr
    float scale;
    void* out;           // [N, P, C]
    int64_t out_stride;  // elements from a pixel to the next, >= C; so that a slice of a wider image can be written
    float* moments;      // [N, C, 2]: mean and biased variance over the pixels of what was written; or nullptr
};

namespace cpu {
void residual(const ResidualArgs& args, int threads);
}
namespace cuda {
void residual(const ResidualArgs& args, int device, void* stream);
}

}  // namespace edm_fast
