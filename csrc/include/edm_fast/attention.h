// attention: self-attention over the pixels of small images, per sample n and head h:
//
//   S = Q Kᵀ / sqrt(d)   P = softmax of the rows of S   O = P V        Q, K, V, O: [tokens, d]
//
// all in float32, whatever the storage type. Q, K and V are views with strides of their own: in EDM's layout the
// channels of qkv [N, tokens, heads · d · 3] interleave as (head, channel, q|k|v), so their channel stride is 3; a
// packed network has them one after another.
#pragma once

#include <cstdint>

#include "edm_fast/dtypes.h"

namespace edm_fast {

struct TokenView {
    void* data;
    int64_t sample_stride, token_stride, head_stride, channel_stride;  // in elements
};

struct AttentionArgs {
    int64_t samples, heads, tokens, head_channels;
    DType dtype;        // float32, float16 or bfloat16, of all views
    TokenView q, k, v;  // read
    TokenView out;      // written
    float*
        log_sum_exp;  // [N, heads, tokens]: ln of the softmax's denominator, written if not nullptr, for the backward
};

// Gradients of sum(out · grad_out). P is recomputed from log_sum_exp.
struct AttentionGradArgs {
    AttentionArgs forward;             // log_sum_exp is read, out is not
    TokenView grad_out;                // read
    TokenView grad_q, grad_k, grad_v;  // written
};

namespace cpu {
void attention(const AttentionArgs& args, int threads);
void attention_grad(const AttentionGradArgs& args, int threads);
}  // namespace cpu

}  // namespace edm_fast
