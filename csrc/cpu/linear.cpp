#include "edm_fast/linear.h"

#include <algorithm>

#include "gemm.h"
#include "parallel.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

namespace {

constexpr int64_t kChunkRows = 8 * kPanelRows;

static void multiply_chunk(const LinearArgs& args, int64_t first, int64_t count, int64_t panel) {
    const int vectors = panel_vectors(args.out_features, panel), width = vectors * kLanes;
    alignas(64) float sums[kChunkRows * kPanelWidth];
    multiply_panel<Floats>([&](int64_t r) { return args.x + (first + r) * args.in_features; }, count, args.in_features,
                           vectors, args.weight + panel * kPanelWidth * args.in_features, sums, width, false);
    for (int v = 0; v < vectors; ++v) {
        const int64_t o = panel * kPanelWidth + v * kLanes;
        const int lanes = int(std::min<int64_t>(kLanes, args.out_features - o));
        const Vec bias = args.bias != nullptr ? load_some(args.bias + o, lanes) : Vec{};
        for (int64_t r = 0; r < count; ++r) {
            const int64_t at = (first + r) * args.out_features + o;
            Vec value = load(sums + r * width + v * kLanes) + bias;
            if (args.addend != nullptr) value += load_some(args.addend + at, lanes);
            store_some(args.out + at, args.silu ? silu(value) : value, lanes);
        }
    }
}

}  // namespace

void linear(const LinearArgs& args, int threads) {
    const int64_t chunks = (args.rows + kChunkRows - 1) / kChunkRows;
    parallel_for(panel_count(args.out_features) * chunks, threads, [&](int64_t item) {
        const int64_t first = item % chunks * kChunkRows;
        multiply_chunk(args, first, std::min(kChunkRows, args.rows - first), item / chunks);
    });
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
