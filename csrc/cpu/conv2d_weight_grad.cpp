// The gradient of 3x3 weights: for each product e of a tile, with V = Bᵀ x B and W = A ∇out Aᵀ,
//
//   C[e][o][i] = sum over tiles t of W[e][t][o] · V[e][t][i],    ∇weight[o][i] = Gᵀ C[·][o][i] G
//
// Groups of tiles go through two steps: (1) the team transforms them; (2) each thread adds the products of its items,
// an item being a panel of input channels and some output channels of one e, to C. Last, the team transforms C. Each
// element of C is summed by one thread in an order that depends on nothing but the batch. Rounding is mostly that of
// the sums, whose chains are short for this reason.
#include <algorithm>

#include "batch.h"
#include "edm_fast/conv2d.h"
#include "scratch.h"
#include "winograd_tiles.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

namespace {

constexpr int64_t kTilesAtOnce = 128;
constexpr int64_t kItemRows = 8 * kPanelRows;     // output channels of an item
constexpr int64_t kChain = 16;                    // tiles whose products are summed before they are added to C
constexpr int64_t kSumFloats = int64_t(8) << 20;  // of C, about: with more channels, some output channels at a time

struct Layout {
    TileGrid grid;
    int64_t tiles, group;         // in the batch, and taken at a time
    int64_t outputs;              // channels of out that are taken at a time
    int64_t in_depth, out_depth;  // floats from a tile to the next in V and W
    int64_t in_plane, out_plane;  // floats from e to e + 1 in V and W
    int64_t row, plane;           // floats from o to o + 1 and from e to e + 1 in C
    int64_t zeros;                // floats
    float *input = nullptr, *gradient = nullptr, *sums = nullptr, *zero = nullptr;
    std::size_t bytes;

    Layout(const Conv2dWeightGradArgs& args, const Form& form, void* memory)
        : grid(args.height + 2 * args.padding - 2, args.width + 2 * args.padding - 2, form) {
        const int64_t products = int64_t(form.height + 2) * (form.width + 2);
        tiles = args.samples * grid.per_image();
        group = std::min(tiles, kTilesAtOnce);
        row = padded_channels(args.in_channels);
        const int64_t fitting = std::max<int64_t>(kSumFloats / (products * row) / kPanelRows * kPanelRows, kPanelRows);
        // As many each time.
        const int64_t times = (args.out_channels + fitting - 1) / fitting;
        outputs = times == 0 ? 0 : round_up((args.out_channels + times - 1) / times, kPanelRows);
        outputs = std::min(outputs, args.out_channels);
        // Rows of a whole number of pages would all begin in the same cache sets.
        in_depth = row + kPadding;
        out_depth = padded_channels(outputs) + kPadding;
        in_plane = group * in_depth + kPadding;
        out_plane = group * out_depth + kPadding;
        plane = outputs * row + kPadding;
        zeros = std::max(row, padded_channels(args.out_channels));
        Arena arena(memory);
        input = arena.take<float>(products * in_plane);
        gradient = arena.take<float>(products * out_plane);
        sums = arena.take<float>(products * plane);
        zero = arena.take<float>(zeros);
        bytes = arena.bytes();
    }
};

// c[i][·] = or += the sum over k of a[k][i] b[k][·], for kRows values of i and kVectors vectors of b.
template <int kRows, int kVectors>
static void outer_products(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t count, float* c,
                           int64_t c_stride, bool accumulate) {
    for (int64_t first = 0; first < count; first += kChain) {
        Vec sum[kRows][kVectors] = {};
        const int64_t end = std::min(first + kChain, count);
        for (int64_t k = first; k < end; ++k) {
            Vec column[kVectors];
#pragma GCC unroll 4
            for (int j = 0; j < kVectors; ++j) {
                column[j] = load(b + k * b_stride + j * kLanes);
                pin(column[j]);
            }
#pragma GCC unroll 8
            for (int i = 0; i < kRows; ++i) {
                const Vec value = splat(a[k * a_stride + i]);
#pragma GCC unroll 4
                for (int j = 0; j < kVectors; ++j) sum[i][j] = fma(value, column[j], sum[i][j]);
            }
        }
        const bool add = accumulate || first > 0;
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
            for (int j = 0; j < kVectors; ++j) {
                float* to = c + i * c_stride + j * kLanes;
                store(to, add ? load(to) + sum[i][j] : sum[i][j]);
            }
        }
    }
}

template <int kVectors>
static void add_rows(const float* a, int64_t a_stride, int64_t rows, const float* b, int64_t b_stride, int64_t count,
                     float* c, int64_t c_stride, bool accumulate) {
    int64_t i = 0;
    for (; i + kPanelRows <= rows; i += kPanelRows) {
        outer_products<kPanelRows, kVectors>(a + i, a_stride, b, b_stride, count, c + i * c_stride, c_stride,
                                             accumulate);
    }
    for (; i + 2 <= rows; i += 2) {
        outer_products<2, kVectors>(a + i, a_stride, b, b_stride, count, c + i * c_stride, c_stride, accumulate);
    }
    if (i < rows)
        outer_products<1, kVectors>(a + i, a_stride, b, b_stride, count, c + i * c_stride, c_stride, accumulate);
}

// The products of item (e, panel, rows) of `count` tiles.
static void add_products(const Conv2dWeightGradArgs& args, const Layout& layout, int64_t item, int64_t outputs,
                         int64_t count, bool accumulate) {
    const int64_t panels = panel_count(args.in_channels), parts = (outputs + kItemRows - 1) / kItemRows;
    const int64_t e = item / (panels * parts), panel = item / parts % panels, o = item % parts * kItemRows;
    const int64_t rows = std::min(kItemRows, outputs - o);
    const float* a = layout.gradient + e * layout.out_plane + o;
    const float* b = layout.input + e * layout.in_plane + panel * kPanelWidth;
    float* c = layout.sums + e * layout.plane + o * layout.row + panel * kPanelWidth;
    const auto add = [&](auto rows_of) {
        rows_of(a, layout.out_depth, rows, b, layout.in_depth, count, c, layout.row, accumulate);
    };
    switch (panel_vectors(args.in_channels, panel)) {
        case 1:
            return add(add_rows<1>);
        case 2:
            return add(add_rows<2>);
#if defined(__AVX512F__)
        case 3:
            return add(add_rows<3>);
        case 4:
            return add(add_rows<4>);
#endif
    }
}

// The taps of output channel `first` + o and all input channels.
template <int kHeight, int kWidth>
static void write_taps(const Conv2dWeightGradArgs& args, const Layout& layout, int64_t first, int64_t o) {
    constexpr int kRows = kHeight + 2, kColumns = kWidth + 2, kProducts = kRows * kColumns;
    float* out = args.out + (first + o) * args.in_channels * 9;
    for_vectors(args.in_channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
        Vec m[kProducts];
        const float* from = layout.sums + o * layout.row + c;
#pragma GCC unroll 36
        for (int e = 0; e < kProducts; ++e) m[e] = load(from + e * layout.plane);
#pragma GCC unroll 6
        for (int j = 0; j < kColumns; ++j) Winograd<kHeight>::taps(m + j, kColumns);
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) Winograd<kWidth>::taps(m + i * kColumns, 1);
        float taps[9][kLanes];
        for (int i = 0; i < 3; ++i) {
            for (int j = 0; j < 3; ++j) store(taps[i * 3 + j], m[i * kColumns + j]);
        }
        for (int lane = 0; lane < lanes; ++lane) {
            for (int tap = 0; tap < 9; ++tap) out[(c + lane) * 9 + tap] = taps[tap][lane];
        }
    });
}

template <int kHeight, int kWidth, class T>
static void weight_grad(const Conv2dWeightGradArgs& args, const Layout& layout, const Team& team) {
    constexpr int kProducts = (kHeight + 2) * (kWidth + 2);
    const T* zeros = reinterpret_cast<const T*>(layout.zero);
    const TileSource<T> x{static_cast<const T*>(args.x),
                          args.height,
                          args.width,
                          args.in_channels,
                          args.in_channels,
                          args.padding,
                          zeros};
    for (int64_t o = 0; o < args.out_channels; o += layout.outputs) {
        const int64_t rows = std::min(layout.outputs, args.out_channels - o);
        const int64_t parts = (rows + kItemRows - 1) / kItemRows;
        const Range items = team.share(kProducts * panel_count(args.in_channels) * parts);
        const TileSource<T> grad{static_cast<const T*>(args.grad) + o,
                                 layout.grid.height,
                                 layout.grid.width,
                                 rows,
                                 args.out_channels,
                                 0,
                                 zeros};
        for (int64_t first = 0; first < layout.tiles; first += layout.group) {
            const int64_t count = std::min(layout.group, layout.tiles - first);
            transform_tiles<InputTransform<kHeight, kWidth>, Floats>(x, layout.grid, first, count, layout.input,
                                                                     layout.in_depth, layout.in_plane, team);
            transform_tiles<GradientTransform<kHeight, kWidth>, Floats>(
                grad, layout.grid, first, count, layout.gradient, layout.out_depth, layout.out_plane, team);
            team.barrier();
            for (int64_t item = items.begin; item < items.end; ++item) {
                add_products(args, layout, item, rows, count, first > 0);
            }
            team.barrier();
        }
        const Range own = team.share(rows);
        for (int64_t row = own.begin; row < own.end; ++row) write_taps<kHeight, kWidth>(args, layout, o, row);
        team.barrier();
    }
}

template <int kHeight, int kWidth>
static void run(const Conv2dWeightGradArgs& args, int threads) {
    const Form form{kHeight, kWidth};
    const Layout layout(args, form, scratch(Layout(args, form, nullptr).bytes));
    std::fill_n(layout.zero, layout.zeros, 0.0f);
    run_team(threads, [&](const Team& team) {
        with_storage(args.dtype,
                     [&](auto storage) { weight_grad<kHeight, kWidth, decltype(storage)>(args, layout, team); });
    });
}

}  // namespace

void conv2d_weight_grad(const Conv2dWeightGradArgs& args, int threads) {
    if (args.in_channels == 0) return;
    if (args.samples == 0) {
        std::fill_n(args.out, args.out_channels * args.in_channels * 9, 0.0f);
    } else if (args.algorithm == kWinograd2) {
        run<2, 2>(args, threads);
    } else if (args.algorithm == kWinograd2x4) {
        run<2, 4>(args, threads);
    } else {
        run<4, 4>(args, threads);
    }
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
