// dropout: out[i] = x[i] · (0 with probability p, else 1 / (1 − p)).
//
// Element i, counted as it lies in memory, is kept if its word is not below p·2³². The words of a run of 128 elements
// are those of 32 blocks of one stream, domain kDomainDropout, draw 0: element i of a run takes word i / 32 of block
// i % 32, so that vectors of words are vectors of elements. The same seed gives the same mask, which is therefore never
// stored: the gradient of x is the dropout of the gradient of out.
#pragma once

#include <cstdint>

#include "edm_fast/dtypes.h"

namespace edm_fast {

struct DropoutArgs {
    int64_t elements;
    DType dtype;  // float32, float16 or bfloat16
    double p;     // 0 <= p < 1
    const int64_t* seed;
    const void* x;
    void* out;  // may be x
};

namespace cpu {
void dropout(const DropoutArgs& args, int threads);
}

}  // namespace edm_fast
