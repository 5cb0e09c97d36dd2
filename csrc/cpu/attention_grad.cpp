// With P = exp(S - log_sum_exp), normalised, dP = dO Vᵀ and D_i = Σ_j P_ij dP_ij (which equals Σ_c dO_ic O_ic, without
// the rounding of O to its storage type):
//
//   dS = P ∘ (dP - D)    dV = Pᵀ dO    dQ = dS K / sqrt(d)    dK = dSᵀ Q / sqrt(d)
//
// What the products read is packed for a group of heads. Then queries are taken in spans: the team splits a span's rows
// for P, dS and dQ, and, when all have them, the keys' rows for the span's part of dV and dK.
#include <algorithm>
#include <cmath>
#include <limits>

#include "attention_pack.h"
#include "attention_work.h"
#include "edm_fast/attention.h"
#include "scratch.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

namespace {

// Sizes in floats. No result depends on the span: multiply() sums over kDepth queries at a time, and spans end there.
struct Sizes {
    int64_t columns, panels;            // of a head: [channels, tokens] and [tokens, channels], packed
    int64_t row_stride, scores_stride;  // of rows of channels and of scores
    int64_t span;                       // rows of queries whose scores are kept
    int64_t head;                       // all that is kept of a head
    int64_t group;                      // heads at a time

    Sizes(const AttentionArgs& args, int threads)
        : columns(round_up(panels_size(args.head_channels, args.tokens), kLine)),
          panels(round_up(panels_size(args.tokens, args.head_channels), kLine)),
          row_stride(odd_lines(args.head_channels)),
          scores_stride(odd_lines(args.tokens)),
          span(std::min(args.tokens,
                        std::max(group_floats(threads) / (2 * scores_stride) / kDepth, int64_t(1)) * kDepth)),
          head(2 * columns + 3 * panels + 2 * span * scores_stride + 2 * args.tokens * row_stride),
          group(heads_in_group(args, head, threads)) {}

    int64_t shared() const { return group * head; }
    int64_t per_thread() const { return 2 * kBlockRows * row_stride; }
};

// Where the parts of a head lie in the shared memory.
struct Parts {
    float *keys_transposed, *values_transposed, *keys, *queries, *grad_out;
    float *weights, *grad_scores;    // P and dS of the span
    float *grad_keys, *grad_values;  // sums over the spans so far

    Parts(float* memory, const Sizes& sizes, int64_t tokens)
        : keys_transposed(memory),
          values_transposed(keys_transposed + sizes.columns),
          keys(values_transposed + sizes.columns),
          queries(keys + sizes.panels),
          grad_out(queries + sizes.panels),
          weights(grad_out + sizes.panels),
          grad_scores(weights + sizes.span * sizes.scores_stride),
          grad_keys(grad_scores + sizes.span * sizes.scores_stride),
          grad_values(grad_keys + tokens * sizes.row_stride) {}
};

// From scores S and dP to P and dS, in place.
static void softmax_grad(float* scores, float* grad, int64_t count, float log_sum_exp) {
    const int64_t whole = round_up(count, kLanes);
    std::fill(scores + count, scores + whole, -std::numeric_limits<float>::infinity());
    std::fill(grad + count, grad + whole, 0.0f);
    const Vec shift = splat(log_sum_exp);
    Vec sum[2] = {}, dot[2] = {};
    for (int64_t i = 0; i < whole; i += kLanes) {
        const Vec weight = exp_of_difference(load(scores + i) - shift);
        store(scores + i, weight);
        const int64_t stream = i / kLanes % 2;
        sum[stream] = sum[stream] + weight;
        dot[stream] = fma(weight, load(grad + i), dot[stream]);
    }
    // The sum is 1 but for the rounding of log_sum_exp, which far from 0 exceeds all other errors.
    const float inverse = 1 / sum_lanes(sum[0] + sum[1]);
    const Vec factor = splat(inverse), mean = splat(sum_lanes(dot[0] + dot[1]) * inverse);
    for (int64_t i = 0; i < whole; i += kLanes) {
        const Vec weight = load(scores + i) * factor;
        store(scores + i, weight);
        store(grad + i, weight * (load(grad + i) - mean));
    }
}

// One thread's part of the work on one group of heads.
template <class T>
class Worker {
  public:
    Worker(const AttentionGradArgs& args, const Sizes& sizes, float* scratch, const Team& team)
        : args_(args),
          forward_(args.forward),
          sizes_(sizes),
          team_(team),
          scale_(1 / std::sqrt(float(forward_.head_channels))),
          shared_(scratch),
          rows_(scratch + sizes.shared() + team.rank * sizes.per_thread()),
          grad_rows_(rows_ + kBlockRows * sizes.row_stride) {}

    void pack(int64_t first_head, int64_t heads) const {
        const int64_t tokens = forward_.tokens, channels = forward_.head_channels;
        for_panels(team_, heads, tokens, [&](int64_t slot, int64_t first, int64_t count) {
            const Parts to = parts(slot);
            const int64_t head = first_head + slot;
            const auto k = view(forward_.k, head), v = view(forward_.v, head);
            pack_transposed(k, tokens, channels, first, count, rows_, sizes_.row_stride, to.keys_transposed);
            pack_transposed(v, tokens, channels, first, count, rows_, sizes_.row_stride, to.values_transposed);
            pack_panels(k, tokens, channels, first, count, to.keys);
            pack_panels(view(forward_.q, head), tokens, channels, first, count, to.queries);
            pack_panels(view(args_.grad_out, head), tokens, channels, first, count, to.grad_out);
        });
    }

    // P, dS and dQ of the span's queries.
    void query_rows(int64_t first_head, int64_t heads, int64_t span_first, int64_t span) const {
        const int64_t tokens = forward_.tokens, channels = forward_.head_channels;
        for_row_blocks(team_, heads, span, [&](int64_t slot, int64_t first, int64_t count) {
            const Parts part = parts(slot);
            const int64_t head = first_head + slot, token = span_first + first;
            float* weights = part.weights + first * sizes_.scores_stride;
            float* grad_scores = part.grad_scores + first * sizes_.scores_stride;
            pack_rows(view(forward_.q, head), channels, token, count, scale_, rows_, sizes_.row_stride);
            pack_rows(view(args_.grad_out, head), channels, token, count, 1.0f, grad_rows_, sizes_.row_stride);
            multiply(count, tokens, channels, {rows_, sizes_.row_stride, false}, {part.keys_transposed, channels},
                     weights, sizes_.scores_stride);
            multiply(count, tokens, channels, {grad_rows_, sizes_.row_stride, false},
                     {part.values_transposed, channels}, grad_scores, sizes_.scores_stride);
            for (int64_t i = 0; i < count; ++i) {
                softmax_grad(weights + i * sizes_.scores_stride, grad_scores + i * sizes_.scores_stride, tokens,
                             forward_.log_sum_exp[head * tokens + token + i]);
            }
            multiply(count, channels, tokens, {grad_scores, sizes_.scores_stride, false}, {part.keys, tokens}, rows_,
                     sizes_.row_stride);
            write_rows(args_.grad_q, head, token, count, rows_, scale_);
        });
    }

    // The span's part of dK and dV, which are written after the last span.
    void key_rows(int64_t first_head, int64_t heads, int64_t span_first, int64_t span) const {
        const int64_t tokens = forward_.tokens, channels = forward_.head_channels;
        const bool adds = span_first > 0, ends = span_first + span == tokens;
        for_row_blocks(team_, heads, tokens, [&](int64_t slot, int64_t first, int64_t count) {
            const Parts part = parts(slot);
            float* grad_keys = part.grad_keys + first * sizes_.row_stride;
            float* grad_values = part.grad_values + first * sizes_.row_stride;
            multiply(count, channels, span, {part.weights + first, sizes_.scores_stride, true},
                     {part.grad_out, tokens, span_first}, grad_values, sizes_.row_stride, adds);
            multiply(count, channels, span, {part.grad_scores + first, sizes_.scores_stride, true},
                     {part.queries, tokens, span_first}, grad_keys, sizes_.row_stride, adds);
            if (!ends) return;
            write_rows(args_.grad_v, first_head + slot, first, count, grad_values, 1.0f);
            write_rows(args_.grad_k, first_head + slot, first, count, grad_keys, scale_);
        });
    }

  private:
    Parts parts(int64_t slot) const { return {shared_ + slot * sizes_.head, sizes_, forward_.tokens}; }

    Head<const T> view(const TokenView& tokens, int64_t head) const { return {tokens, forward_.heads, head}; }

    void write_rows(const TokenView& to, int64_t head, int64_t first, int64_t count, const float* from,
                    float scale) const {
        const Head<T> rows(to, forward_.heads, head);
        for (int64_t i = 0; i < count; ++i) {
            store_channels(from + i * sizes_.row_stride, forward_.head_channels, scale, rows.at(first + i, 0),
                           rows.channel_stride);
        }
    }

    const AttentionGradArgs& args_;
    const AttentionArgs& forward_;
    const Sizes& sizes_;
    const Team& team_;
    const float scale_;
    float *shared_, *rows_, *grad_rows_;
};

template <class T>
static void attention_grad(const AttentionGradArgs& args, const Sizes& sizes, float* scratch, const Team& team) {
    const Worker<T> worker(args, sizes, scratch, team);
    const int64_t tokens = args.forward.tokens, all = args.forward.samples * args.forward.heads;
    for (int64_t head = 0; head < all; head += sizes.group) {
        const int64_t heads = std::min(sizes.group, all - head);
        worker.pack(head, heads);
        team.barrier();
        for (int64_t first = 0; first < tokens; first += sizes.span) {
            const int64_t span = std::min(sizes.span, tokens - first);
            worker.query_rows(head, heads, first, span);
            team.barrier();
            worker.key_rows(head, heads, first, span);
            team.barrier();
        }
    }
}

}  // namespace

void attention_grad(const AttentionGradArgs& args, int threads) {
    const AttentionArgs& forward = args.forward;
    if (forward.samples == 0 || forward.tokens == 0 || forward.head_channels == 0) return;
    const int useful = worth_threads(forward) ? threads : 1;
    const Sizes sizes(forward, useful);
    float* memory = (float*)scratch(std::size_t(sizes.shared() + useful * sizes.per_thread()) * sizeof(float));
    run_team(useful, [&](const Team& team) {
        with_type(forward.dtype, [&](auto type) { attention_grad<decltype(type)>(args, sizes, memory, team); });
    });
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
