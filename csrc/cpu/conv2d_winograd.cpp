// A group of tiles goes through three steps. (1) The input is transformed: V[e][tile][in_channel], for each product e
// of a tile. (2) A thread takes items, an item being a panel of output channels of kTileRows tiles, and multiplies M[e]
// = V[e] · U[e] for a few items at a time, e outermost: V[e] stays in the second-level cache for all of them, and U is
// read once per group. (3) The same thread transforms its items back, with bias, residual and scale, while M is in
// cache.
//
// With enough tiles every thread has groups of its own, and V never leaves its cache. With few the team shares each
// group, so that every thread reads a part of the weights only.
#include <algorithm>

#include "conv2d_team.h"
#include "winograd_tiles.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

namespace {

constexpr int64_t kTileRows = 8 * kPanelRows;
constexpr int64_t kItemsAtOnce = 2;
constexpr int64_t kSharedBytes = 4 << 20;   // of V, about, if the team shares it,
constexpr int64_t kPrivateBytes = 7 << 18;  // and if every thread has one
constexpr int64_t kPrivateTiles = 24;       // from so many tiles per thread on

Form form_of(ConvAlgorithm algorithm) {
    return algorithm == kWinograd2 ? Form{2, 2} : algorithm == kWinograd2x4 ? Form{2, 4} : Form{4, 4};
}

struct Tiling {
    TileGrid grid{};                                          // of the output
    int64_t tiles, group;                                     // in the batch, and taken at a time
    bool is_private;                                          // every thread has groups of its own
    int64_t depth;                                            // floats of an input pixel in V, and of a weight
    int64_t plane, item_plane;                                // floats from e to e + 1 in V and in an item of M
    int64_t transformed_floats, product_floats, zero_floats;  // V; M per thread; zeros per thread

    Tiling(const Conv2dArgs& args, const Form& form, int threads) {
        const int64_t products = int64_t(form.height + 2) * (form.width + 2), channels = args.channels[0];
        grid = TileGrid(output_height(args), output_width(args), form);
        tiles = args.samples * grid.per_image();
        depth = args.factors == kFloat32 ? channels : channels / 2;
        is_private = threads == 1 || tiles >= threads * kPrivateTiles;
        const int64_t bytes = is_private ? kPrivateBytes : kSharedBytes;
        const int64_t fitting = bytes / (products * depth * int64_t(sizeof(float))) / kPanelRows * kPanelRows;
        group = std::min(tiles, std::max(fitting, kPrivateTiles));
        plane = group * depth + kPadding;
        item_plane = std::min(group, kTileRows) * kPanelWidth + kPadding;
        transformed_floats = round_up(products * plane, kPadding);
        const int64_t chunks = (group + kTileRows - 1) / kTileRows;
        const int64_t items = std::min(kItemsAtOnce, panel_count(args.out_channels) * chunks);
        product_floats = round_up(items * products * item_plane, kPadding);
        zero_floats = round_up(channels, kPadding);
    }
};

template <int kHeight, int kWidth, class T>
static void transform_output(const Conv2dArgs& args, const Tiling& tiling, int64_t first, int64_t count, int64_t panel,
                             int vectors, const float* products) {
    constexpr int kRows = kHeight + 2, kColumns = kWidth + 2, kProducts = kRows * kColumns;
    T* out = static_cast<T*>(args.out);
    const T* residual = static_cast<const T*>(args.residual);
    const int shift = args.residual_shift;
    const int64_t image_height = tiling.grid.height, image_width = tiling.grid.width;
    TileWalk<kHeight, kWidth> walk(tiling.grid, first);
    for (int64_t r = 0; r < count; ++r, walk.next()) {
        const Tile& tile = walk.tile;
        const int64_t corner = (tile.sample * image_height + tile.y) * image_width + tile.x;
        const int64_t residual_corner =
            (tile.sample * (image_height >> shift) + (tile.y >> shift)) * (image_width >> shift) + (tile.x >> shift);
        const int height = int(std::min<int64_t>(kHeight, image_height - tile.y));
        const int width = int(std::min<int64_t>(kWidth, image_width - tile.x));
        for (int v = 0; v < vectors; ++v) {
            const int64_t c = panel * kPanelWidth + v * kLanes;
            const int lanes = int(std::min<int64_t>(kLanes, args.out_channels - c));
            const float* from = products + (r * vectors + v) * kLanes;
            Vec m[kProducts];
#pragma GCC unroll 36
            for (int e = 0; e < kProducts; ++e) m[e] = load(from + e * tiling.item_plane);
#pragma GCC unroll 6
            for (int j = 0; j < kColumns; ++j) Winograd<kHeight>::output(m + j, kColumns);
#pragma GCC unroll 4
            for (int i = 0; i < kHeight; ++i) Winograd<kWidth>::output(m + i * kColumns, 1);
            const Vec constant = constant_term(args, tile.sample, c, lanes);
            const auto write = [&](int i, int j, int valid) __attribute__((always_inline)) {
                Vec value = m[i * kColumns + j] + constant;
                if (residual != nullptr) {
                    const int64_t pixel = residual_corner + (i >> shift) * (image_width >> shift) + (j >> shift);
                    value += load_some(residual + pixel * args.out_channels + c, valid);
                }
                T* to = out + (corner + i * image_width + j) * args.out_channels + c;
                store_some(to, value * splat(args.scale), valid);
            };
            if (lanes == kLanes && height == kHeight && width == kWidth) {
#pragma GCC unroll 4
                for (int i = 0; i < kHeight; ++i) {
#pragma GCC unroll 4
                    for (int j = 0; j < kWidth; ++j) write(i, j, kLanes);
                }
            } else {
                for (int i = 0; i < height; ++i) {
                    for (int j = 0; j < width; ++j) write(i, j, lanes);
                }
            }
        }
    }
}

// The panel that is needed after the one of item i and product e, of the items [item, end).
static const float* next_weight(const Conv2dArgs& args, int64_t item, int64_t end, int64_t i, int64_t e, int64_t chunks,
                                int64_t depth) {
    const int64_t following = (i / chunks + 1) * chunks;
    const int64_t panel = (following < end ? following : item) / chunks;
    const int64_t product = following < end ? e : e + 1;
    return args.weight + (product * padded_channels(args.out_channels) + panel * kPanelWidth) * depth;
}

// The tiles of `range`, group by group. The team meets if it has more than one thread.
template <int kHeight, int kWidth, class T, class Product>
static void convolve_tiles(const Conv2dArgs& args, const Tiling& tiling, const Range& range, float* transformed,
                           float* own, const Team& team) {
    constexpr int kProducts = (kHeight + 2) * (kWidth + 2);
    const int64_t depth = tiling.depth, padded = padded_channels(args.out_channels);
    float* zero_row = own + tiling.product_floats;
    std::fill_n(zero_row, tiling.zero_floats, 0.0f);
    const TileSource<T> source{static_cast<const T*>(args.source[0]),
                               args.height,
                               args.width,
                               args.channels[0],
                               args.channels[0],
                               args.padding,
                               reinterpret_cast<const T*>(zero_row)};

    for (int64_t first = range.begin; first < range.end; first += tiling.group) {
        const int64_t count = std::min(tiling.group, range.end - first);
        if (first > range.begin) team.barrier();  // the others still read V
        transform_tiles<InputTransform<kHeight, kWidth>, Product>(source, tiling.grid, first, count, transformed, depth,
                                                                  tiling.plane, team);
        team.barrier();

        const int64_t chunks = (count + kTileRows - 1) / kTileRows;
        const Range items = team.share(panel_count(args.out_channels) * chunks);
        for (int64_t item = items.begin; item < items.end; item += kItemsAtOnce) {
            const int64_t end = std::min(item + kItemsAtOnce, items.end);
            for (int e = 0; e < kProducts; ++e) {
                for (int64_t i = item; i < end; ++i) {
                    const int64_t panel = i / chunks, row = i % chunks * kTileRows;
                    const int vectors = panel_vectors(args.out_channels, panel);
                    const float* rows = transformed + e * tiling.plane + row * depth;
                    const float* weight = args.weight + (e * padded + panel * kPanelWidth) * depth;
                    float* products = own + ((i - item) * kProducts + e) * tiling.item_plane;
                    // Only the first item of a panel brings it from memory.
                    const bool fresh = i == item || row == 0;
                    const float* next = fresh ? next_weight(args, item, end, i, e, chunks, depth) : nullptr;
                    multiply_panel<Product>([&](int64_t r) { return rows + r * depth; },
                                            std::min(kTileRows, count - row), depth, vectors, weight, products,
                                            vectors * kLanes, false, next);
                }
            }
            for (int64_t i = item; i < end; ++i) {
                const int64_t panel = i / chunks, row = i % chunks * kTileRows;
                transform_output<kHeight, kWidth, T>(args, tiling, first + row, std::min(kTileRows, count - row), panel,
                                                     panel_vectors(args.out_channels, panel),
                                                     own + (i - item) * kProducts * tiling.item_plane);
            }
        }
    }
}

// Scratch: V, shared or one per thread; then M and zeros of each thread.
template <int kHeight, int kWidth, class T, class Product = Floats>
static void convolve(const Conv2dArgs& args, float* memory, const Team& team) {
    const Tiling tiling(args, {kHeight, kWidth}, team.size);
    const int64_t own_floats = tiling.product_floats + tiling.zero_floats;
    if (tiling.is_private) {
        float* transformed = memory + team.rank * (tiling.transformed_floats + own_floats);
        float* own = transformed + tiling.transformed_floats;
        convolve_tiles<kHeight, kWidth, T, Product>(args, tiling, team.share(tiling.tiles, kPanelRows), transformed,
                                                    own, Team{});
    } else {
        float* own = memory + tiling.transformed_floats + team.rank * own_floats;
        convolve_tiles<kHeight, kWidth, T, Product>(args, tiling, {0, tiling.tiles}, memory, own, team);
    }
}

template <int kHeight, int kWidth>
static void convolve_as(const Conv2dArgs& args, float* memory, const Team& team) {
    switch (args.dtype) {
        case kFloat16:
            return convolve<kHeight, kWidth, Half>(args, memory, team);
        case kBFloat16:
#if defined(__AVX512F__)
            if (args.factors == kBFloat16) return convolve<kHeight, kWidth, BFloat16, Pairs>(args, memory, team);
#endif
            return convolve<kHeight, kWidth, BFloat16>(args, memory, team);
        default:
            return convolve<kHeight, kWidth, float>(args, memory, team);
    }
}

}  // namespace

std::size_t winograd_scratch(const Conv2dArgs& args, int threads) {
    // A team may turn out smaller than asked for, and then choose the other way.
    int64_t most = 0;
    for (int size = 1; size <= threads; ++size) {
        const Tiling tiling(args, form_of(args.algorithm), size);
        const int64_t own = tiling.product_floats + tiling.zero_floats;
        most = std::max(most, tiling.is_private ? size * (tiling.transformed_floats + own)
                                                : tiling.transformed_floats + size * own);
    }
    return sizeof(float) * std::size_t(most);
}

void winograd_conv2d(const Conv2dArgs& args, void* scratch, const Team& team) {
    float* memory = static_cast<float*>(scratch);
    if (args.algorithm == kWinograd2) return convolve_as<2, 2>(args, memory, team);
    if (args.algorithm == kWinograd2x4) return convolve_as<2, 4>(args, memory, team);
    convolve_as<4, 4>(args, memory, team);
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
