// How attention and its gradients lay out their memory and split their work.
#pragma once

#include <algorithm>

#include "attention_multiply.h"
#include "edm_fast/attention.h"
#include "team.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

// Rows that go past a panel while it is in the first-level cache.
constexpr int64_t kBlockRows = 8 * kTileRows;
// What is kept for a group of heads takes so many floats for each thread, so that it stays near in the caches, and at
// most so many for the team, or what one head needs.
constexpr int64_t kGroupFloatsOfThread = 1 << 18, kGroupFloats = 1 << 21;
// Floats of a cache line.
constexpr int64_t kLine = 16;

// The distance of rows of `count` floats: whole vectors, and an odd number of cache lines, so that rows do not fall on
// the same few sets of the cache.
EDM_FAST_INLINE int64_t odd_lines(int64_t count) {
    return ((count + kLine - 1) / kLine | 1) * kLine;
}

EDM_FAST_INLINE int64_t group_floats(int threads) {
    return std::min(std::max(threads, 1) * kGroupFloatsOfThread, kGroupFloats);
}

// How many heads are worked on at a time; no result depends on it.
EDM_FAST_INLINE int64_t heads_in_group(const AttentionArgs& args, int64_t floats_of_head, int threads) {
    const int64_t fitting = std::max<int64_t>(group_floats(threads) / std::max<int64_t>(floats_of_head, 1), 1);
    return std::clamp<int64_t>(args.samples * args.heads, 1, fitting);
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

// Calls body(head, first, count) for this thread's share of `rows` rows of each of `heads` heads.
template <class Body>
static void for_row_blocks(const Team& team, int64_t heads, int64_t rows, const Body& body) {
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    const Range range = team.share(heads * tiles);
    for (int64_t tile = range.begin; tile < range.end;) {
        const int64_t in_head = tile % tiles;
        const int64_t taken = std::min({range.end - tile, tiles - in_head, kBlockRows / kTileRows});
        const int64_t first = in_head * kTileRows;
        body(tile / tiles, first, std::min(taken * kTileRows, rows - first));
        tile += taken;
    }
}

// Calls body(head, first, count) for this thread's share of the panels that `tokens` columns take, for each head.
template <class Body>
static void for_panels(const Team& team, int64_t heads, int64_t tokens, const Body& body) {
    const int64_t panels = (tokens + kPanel - 1) / kPanel;
    const Range range = team.share(heads * panels);
    for (int64_t task = range.begin; task < range.end; ++task) {
        const int64_t first = task % panels * kPanel;
        body(task / panels, first, std::min(tokens - first, kPanel));
    }
}

// A region of threads costs as much as a few million operations.
EDM_FAST_INLINE bool worth_threads(const AttentionArgs& args) {
    return double(args.samples) * double(args.heads) * double(args.tokens) * double(args.tokens) *
               double(args.head_channels) >=
           5e5;
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
