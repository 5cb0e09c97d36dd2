// What the kernels of attention and of its gradients share besides the arithmetic.
#pragma once

#include "attention_multiply.h"
#include "edm_fast/attention.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

// Floats of a cache line.
constexpr int64_t kLine = 16;

// The distance of rows of `count` floats: whole vectors, and an odd number of cache lines, so that rows do not fall on
// the same few sets of the cache.
EDM_FAST_INLINE int64_t odd_lines(int64_t count) {
    return ((count + kLine - 1) / kLine | 1) * kLine;
}

// Calls body with a value of the storage type.
template <class Body>
static void with_type(DType dtype, const Body& body) {
    switch (dtype) {
        case kFloat16:
            return body(Half{});
        case kBFloat16:
            return body(BFloat16{});
        default:
            return body(float{});
    }
}

// A region of threads costs as much as a few million operations.
EDM_FAST_INLINE bool worth_threads(const AttentionArgs& args) {
    return double(args.samples) * double(args.heads) * double(args.tokens) * double(args.tokens) *
               double(args.head_channels) >=
           5e5;
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
