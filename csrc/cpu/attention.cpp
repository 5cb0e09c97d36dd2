// The keys and values of a group of heads are packed once into shared memory, then the rows of queries are split over
// the team. A block of query rows keeps its whole rows of scores: S = Q Kᵀ, exp(S - max) in place, and O = P V divided
// by the rows' sums as it is stored.
#include "edm_fast/attention.h"

#include <algorithm>
#include <cmath>

#include "attention_pack.h"
#include "attention_softmax.h"
#include "attention_team.h"
#include "attention_work.h"
#include "scratch.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

namespace {

// Sizes in floats.
struct Sizes {
    int64_t keys, values;               // of a head, packed
    int64_t row_stride, scores_stride;  // of a thread's rows of queries and of scores
    int64_t group;                      // heads that are packed at a time

    Sizes(const AttentionArgs& args, int threads)
        : keys(round_up(panels_size(args.head_channels, args.tokens), kLine)),
          values(round_up(panels_size(args.tokens, args.head_channels), kLine)),
          row_stride(odd_lines(args.head_channels)),
          scores_stride(odd_lines(args.tokens)),
          group(heads_in_group(args, keys + values, threads)) {}

    int64_t shared() const { return group * (keys + values); }
    int64_t per_thread() const { return kBlockRows * (row_stride + scores_stride); }
};

// One thread's part of the work on one group of heads.
template <class T>
class Worker {
  public:
    Worker(const AttentionArgs& args, const Sizes& sizes, float* scratch, const Team& team)
        : args_(args),
          sizes_(sizes),
          team_(team),
          packed_(scratch),
          rows_(scratch + sizes.shared() + team.rank * sizes.per_thread()),
          scores_(rows_ + kBlockRows * sizes.row_stride) {}

    void pack(int64_t first_head, int64_t heads) const {
        for_panels(team_, heads, args_.tokens, [&](int64_t slot, int64_t first, int64_t count) {
            pack_transposed(Head<const T>(args_.k, args_.heads, first_head + slot), args_.tokens, args_.head_channels,
                            first, count, rows_, sizes_.row_stride, keys(slot));
            pack_panels(Head<const T>(args_.v, args_.heads, first_head + slot), args_.tokens, args_.head_channels,
                        first, count, values(slot));
        });
    }

    void attend(int64_t first_head, int64_t heads) const {
        for_row_blocks(team_, heads, args_.tokens, [&](int64_t slot, int64_t first, int64_t count) {
            attend_rows(first_head + slot, slot, first, count);
        });
    }

  private:
    float* keys(int64_t slot) const { return packed_ + slot * (sizes_.keys + sizes_.values); }
    float* values(int64_t slot) const { return keys(slot) + sizes_.keys; }

    void attend_rows(int64_t head, int64_t slot, int64_t first, int64_t count) const {
        const int64_t tokens = args_.tokens, channels = args_.head_channels;
        pack_rows(Head<const T>(args_.q, args_.heads, head), channels, first, count, 1 / std::sqrt(float(channels)),
                  rows_, sizes_.row_stride);
        multiply(count, tokens, channels, {rows_, sizes_.row_stride, false}, {keys(slot), channels}, scores_,
                 sizes_.scores_stride);
        float sum[kBlockRows];
        for (int64_t i = 0; i < count; ++i) {
            const Softmax row = softmax(scores_ + i * sizes_.scores_stride, tokens);
            sum[i] = row.sum;
            if (args_.log_sum_exp != nullptr) {
                args_.log_sum_exp[head * tokens + first + i] = row.largest + std::log(row.sum);
            }
        }
        multiply(count, channels, tokens, {scores_, sizes_.scores_stride, false}, {values(slot), tokens}, rows_,
                 sizes_.row_stride);
        const Head<T> out(args_.out, args_.heads, head);
        for (int64_t i = 0; i < count; ++i) {
            store_channels(rows_ + i * sizes_.row_stride, channels, 1 / sum[i], out.at(first + i, 0),
                           out.channel_stride);
        }
    }

    const AttentionArgs& args_;
    const Sizes& sizes_;
    const Team& team_;
    float *packed_, *rows_, *scores_;
};

}  // namespace

std::size_t attention_scratch(const AttentionArgs& args, int threads) {
    const Sizes sizes(args, threads);
    return std::size_t(sizes.shared() + std::max(threads, 1) * sizes.per_thread()) * sizeof(float);
}

void attention(const AttentionArgs& args, void* scratch, const Team& team) {
    const Sizes sizes(args, team.size);
    const int64_t all = args.samples * args.heads;
    if (args.tokens == 0 || args.head_channels == 0) return;
    with_type(args.dtype, [&](auto type) {
        const Worker<decltype(type)> worker(args, sizes, (float*)scratch, team);
        for (int64_t head = 0; head < all; head += sizes.group) {
            const int64_t heads = std::min(sizes.group, all - head);
            if (head > 0) team.barrier();
            worker.pack(head, heads);
            team.barrier();
            worker.attend(head, heads);
        }
    });
}

void attention(const AttentionArgs& args, int threads) {
    const int useful = worth_threads(args) ? threads : 1;
    void* memory = scratch(attention_scratch(args, useful));
    run_team(useful, [&](const Team& team) { attention(args, memory, team); });
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
