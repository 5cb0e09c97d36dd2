// Weights in the order in which the kernels read them: [e][panel][in_channel][width], for each product e of a tile, for
// Winograd's forms, and [panel][tap][in_channel][width] for the direct one; [in_channel / 2][width][2] for pairs of
// bfloat16. Transforms are computed in float64 and rounded once, or, for bfloat16, twice.
#include "edm_fast/conv2d.h"
#include "gemm.h"
#include "parallel.h"
#include "winograd.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

namespace {

constexpr int kOutputsAtOnce = 8;
typedef double Doubles __attribute__((vector_size(8 * kOutputsAtOnce)));

// A panel [k][width] of floats, or of pairs of bfloat16 with half as many k.
struct PackedPanel {
    float* memory;
    int width;
    DType factors;

    void write(int64_t k, int lane, double value) const {
        if (factors == kFloat32) {
            memory[k * width + lane] = float(value);
        } else {
            reinterpret_cast<BFloat16*>(memory)[(k / 2 * width + lane) * 2 + k % 2] = to_bfloat16(float(value));
        }
    }
};

// The weights where they lie, for output channel o, input channel k and a tap.
struct Weights {
    const float* memory;
    int64_t out_stride, in_stride, first_tap, tap_stride;

    explicit Weights(const PackConv2dArgs& args) : memory(args.weight) {
        const int64_t taps = int64_t(args.kernel) * args.kernel;
        out_stride = args.turned ? taps : args.in_channels * taps;
        in_stride = args.turned ? args.out_channels * taps : taps;
        first_tap = args.turned ? taps - 1 : 0;
        tap_stride = args.turned ? -1 : 1;
    }

    float at(int64_t o, int64_t k, int64_t tap) const {
        return memory[o * out_stride + k * in_stride + first_tap + tap * tap_stride];
    }
};

static int64_t depth_of(const PackConv2dArgs& args) {
    return args.factors == kFloat32 ? args.in_channels : args.in_channels / 2;
}

template <int kHeight, int kWidth>
static void pack_winograd(const PackConv2dArgs& args, int threads) {
    constexpr int kRows = kHeight + 2, kColumns = kWidth + 2;
    const int64_t in = args.in_channels, out = args.out_channels, padded = padded_channels(out), depth = depth_of(args);
    const Weights weights(args);
    parallel_for(panel_count(out), threads, [&](int64_t panel) {
        const int width = panel_vectors(out, panel) * kLanes;
        for (int64_t k = 0; k < in; ++k) {
            for (int first = 0; first < width; first += kOutputsAtOnce) {
                const int count = width - first < kOutputsAtOnce ? width - first : kOutputsAtOnce;
                Doubles taps[9] = {}, rows[kRows * 3], result[kRows * kColumns];
                for (int lane = 0; lane < count; ++lane) {
                    const int64_t o = panel * kPanelWidth + first + lane;
                    if (o >= out) continue;
                    for (int tap = 0; tap < 9; ++tap) taps[tap][lane] = weights.at(o, k, tap);
                }
                for (int column = 0; column < 3; ++column) {
                    const Doubles g[3] = {taps[column], taps[3 + column], taps[6 + column]};
                    Doubles transformed[kRows];
                    Winograd<kHeight>::filter(g, transformed);
                    for (int i = 0; i < kRows; ++i) rows[i * 3 + column] = transformed[i];
                }
                for (int i = 0; i < kRows; ++i) Winograd<kWidth>::filter(rows + i * 3, result + i * kColumns);
                for (int e = 0; e < kRows * kColumns; ++e) {
                    const PackedPanel packed{args.packed + (e * padded + panel * kPanelWidth) * depth, width,
                                             args.factors};
                    for (int lane = 0; lane < count; ++lane) packed.write(k, first + lane, result[e][lane]);
                }
            }
        }
    });
}

static void pack_direct(const PackConv2dArgs& args, int threads) {
    const int64_t in = args.in_channels, out = args.out_channels, taps = int64_t(args.kernel) * args.kernel;
    const int64_t depth = depth_of(args);
    const Weights weights(args);
    parallel_for(panel_count(out), threads, [&](int64_t panel) {
        const int width = panel_vectors(out, panel) * kLanes;
        for (int64_t tap = 0; tap < taps; ++tap) {
            const PackedPanel packed{args.packed + (panel * kPanelWidth * taps + tap * width) * depth, width,
                                     args.factors};
            for (int64_t k = 0; k < in; ++k) {
                for (int lane = 0; lane < width; ++lane) {
                    const int64_t o = panel * kPanelWidth + lane;
                    packed.write(k, lane, o < out ? weights.at(o, k, tap) : 0.0f);
                }
            }
        }
    });
}

// Tiles of 16 pairs of channels x 16 output channels, each in one piece.
static void pack_tiles(const PackConv2dArgs& args, int threads) {
    constexpr int kTile = 16;
    const int64_t in = args.in_channels, out = args.out_channels, taps = int64_t(args.kernel) * args.kernel;
    const Weights weights(args);
    parallel_for((out + kTile - 1) / kTile, threads, [&](int64_t panel) {
        for (int64_t tap = 0; tap < taps; ++tap) {
            const PackedPanel packed{args.packed + (panel * taps + tap) * in / 2 * kTile, kTile, args.factors};
            for (int64_t k = 0; k < in; ++k) {
                for (int lane = 0; lane < kTile; ++lane) {
                    const int64_t o = panel * kTile + lane;
                    packed.write(k, lane, o < out ? weights.at(o, k, tap) : 0.0f);
                }
            }
        }
    });
}

}  // namespace

int64_t conv2d_packed_size(int64_t in_channels, int64_t out_channels, int32_t kernel, ConvAlgorithm algorithm,
                           DType factors) {
    const int64_t products = algorithm == kWinograd4     ? 36
                             : algorithm == kWinograd2x4 ? 24
                             : algorithm == kWinograd2   ? 16
                                                         : int64_t(kernel) * kernel;
    const int64_t padded = algorithm == kTiles ? round_up(out_channels, 16) : padded_channels(out_channels);
    return products * (factors == kFloat32 ? in_channels : in_channels / 2) * padded;
}

void pack_conv2d(const PackConv2dArgs& args, int threads) {
    if (args.algorithm == kWinograd2) return pack_winograd<2, 2>(args, threads);
    if (args.algorithm == kWinograd2x4) return pack_winograd<2, 4>(args, threads);
    if (args.algorithm == kWinograd4) return pack_winograd<4, 4>(args, threads);
    if (args.algorithm == kTiles) return pack_tiles(args, threads);
    pack_direct(args, threads);
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
