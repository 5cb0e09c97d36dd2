// The direct form by matrix tiles, for bfloat16 factors on processors with AMX.
//
// A strip is some rows of one image, copied with zeros around it, so that 16 pixels in a row of a tile are evenly
// spaced for every tap: position q of the strip, counted through rows that are as wide as the padded image, reads
// q + a·stride + b for tap (a, b). The positions that hang over at the right of each row are computed and thrown away.
// 1x1 layers read the images as they lie. The sums of 64 positions and 16 output channels stay in four tiles: of the
// two factors the weights come from farther away, and are loaded once for all four.
#include <algorithm>
#include <cstring>

#include "batch.h"
#include "conv2d_team.h"
#include "tiles.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

#if defined(EDM_FAST_TILES)

namespace {

constexpr int64_t kStripPositions = 512;  // about
constexpr int64_t kBlockTiles = 4;

struct Layout {
    int64_t height, width;    // of the output
    int64_t stride;           // positions from a row of a strip to the next
    int64_t rows, strips;     // output rows in a strip; strips in the batch
    int64_t per_image;        // strips
    int64_t positions;        // of a strip, in whole tiles
    int64_t strip_pixels[2];  // of a strip with its border, by source
    int64_t own_bytes;        // of scratch per thread
    bool copied;

    explicit Layout(const Conv2dArgs& args) {
        height = output_height(args);
        width = output_width(args);
        copied = args.kernel > 1 || args.padding > 0;
        if (copied) {
            stride = args.width + 2 * args.padding;
            rows = std::clamp<int64_t>(kStripPositions / stride, 1, height);
            per_image = (height + rows - 1) / rows;
            strips = args.samples * per_image;
            positions = round_up(rows * stride, kTileSize);
        } else {  // pixels of the whole batch in a row
            stride = rows = per_image = 1;
            strips = (args.samples * height * width + kStripPositions - 1) / kStripPositions;
            positions = kStripPositions;
        }
        const int64_t reach = (args.kernel - 1) * (stride + 1);
        own_bytes = 0;
        for (int s = 0; s < 2; ++s) {
            // Without a copy, only the last positions of the batch that do not fill a tile.
            strip_pixels[s] = args.channels[s] == 0 ? 0 : copied ? positions + reach : kTileSize;
            own_bytes += round_up(strip_pixels[s] * args.channels[s] * 2, 64);
        }
        own_bytes += kBlockTiles * kTileSize * kTileSize * int64_t(sizeof(float));
    }
};

// Scratch of a thread.
struct Memory {
    BFloat16* strip[2];
    float* sums;

    Memory(const Conv2dArgs& args, const Layout& layout, void* memory) {
        Arena arena(memory);
        for (int s = 0; s < 2; ++s) strip[s] = arena.take<BFloat16>(layout.strip_pixels[s] * args.channels[s]);
        sums = arena.take<float>(kBlockTiles * kTileSize * kTileSize);
    }
};

// What is computed at a time: positions of one image, or, where nothing is copied, pixels of the batch.
struct Strip {
    int64_t sample, first_position, positions;  // counted from the first row of `sample`

    Strip(const Conv2dArgs& args, const Layout& layout, int64_t index) {
        if (layout.copied) {
            const int64_t top = index % layout.per_image * layout.rows;
            sample = index / layout.per_image;
            first_position = top * layout.stride;
            positions = std::min(layout.rows, layout.height - top) * layout.stride;
        } else {
            sample = 0;
            first_position = index * kStripPositions;
            positions = std::min(kStripPositions, args.samples * layout.height * layout.width - first_position);
        }
    }
};

// The pixels that a strip's output needs, with zeros for those outside of the image.
static void copy_strip(const Conv2dArgs& args, const Layout& layout, const Strip& strip, const Memory& memory) {
    const int64_t top = strip.first_position / layout.stride, rows = strip.positions / layout.stride;
    for (int s = 0; s < 2 && args.channels[s] > 0; ++s) {
        const int64_t channels = args.channels[s], pad = args.padding * channels, row = args.width * channels;
        const BFloat16* image = static_cast<const BFloat16*>(args.source[s]) + strip.sample * args.height * row;
        BFloat16* to = memory.strip[s];
        BFloat16* const end = to + layout.strip_pixels[s] * channels;
        for (int64_t y = top - args.padding; y < top - args.padding + rows + args.kernel - 1; ++y) {
            const bool inside = y >= 0 && y < args.height;
            std::memset(static_cast<void*>(to), 0, size_t(pad) * 2);
            if (inside) {
                std::memcpy(static_cast<void*>(to + pad), image + y * row, size_t(row) * 2);
            } else {
                std::memset(static_cast<void*>(to + pad), 0, size_t(row) * 2);
            }
            std::memset(static_cast<void*>(to + pad + row), 0, size_t(pad) * 2);
            to += layout.stride * channels;
        }
        // What positions that are thrown away read.
        std::memset(static_cast<void*>(to), 0, size_t(end - to) * 2);
    }
}

// Sums of kRows tiles of positions, from `from` on (of each source), by one tile of output channels.
template <int kRows>
static void multiply_block(const Conv2dArgs& args, const Layout& layout, const BFloat16* const (&from)[2],
                           const float* weight, float* sums) {
    constexpr int64_t kTileBytes = kTileSize * int64_t(sizeof(float));
    tile_zero<0>();
    if (kRows > 1) tile_zero<1>();
    if (kRows > 2) tile_zero<2>();
    if (kRows > 3) tile_zero<3>();
    for (int64_t tap = 0; tap < int64_t(args.kernel) * args.kernel; ++tap) {
        const int64_t offset = tap / args.kernel * layout.stride + tap % args.kernel;
        for (int s = 0; s < 2 && args.channels[s] > 0; ++s) {
            const int64_t channels = args.channels[s], row = channels * 2, tile = kTileSize * channels;
            const BFloat16* a = from[s] + offset * channels;
            for (int64_t k = 0; k < channels; k += kTileFactors, a += kTileFactors, weight += kTileSize * kTileSize) {
                tile_load<6>(weight, kTileBytes);
                tile_load<4>(a, row);
                tile_multiply<0, 4, 6>();
                if (kRows > 1) {
                    tile_load<5>(a + tile, row);
                    tile_multiply<1, 5, 6>();
                }
                if (kRows > 2) {
                    tile_load<4>(a + 2 * tile, row);
                    tile_multiply<2, 4, 6>();
                }
                if (kRows > 3) {
                    tile_load<5>(a + 3 * tile, row);
                    tile_multiply<3, 5, 6>();
                }
            }
        }
    }
    tile_store<0>(sums, kTileBytes);
    if (kRows > 1) tile_store<1>(sums + kTileSize * kTileSize, kTileBytes);
    if (kRows > 2) tile_store<2>(sums + 2 * kTileSize * kTileSize, kTileBytes);
    if (kRows > 3) tile_store<3>(sums + 3 * kTileSize * kTileSize, kTileBytes);
}

// Finishes `count` pixels of a row of an output image, from (y, x) on, in the lanes from channel c on.
static void write_run(const Conv2dArgs& args, const Layout& layout, int64_t sample, int64_t y, int64_t x, int64_t count,
                      int64_t c, const float* sums) {
    const int lanes = int(std::min<int64_t>(kLanes, args.out_channels - c));
    const Vec constant = constant_term(args, sample, c, lanes), scale = splat(args.scale);
    const int64_t first = (sample * layout.height + y) * layout.width + x, stride = args.out_channels;
    BFloat16* out = static_cast<BFloat16*>(args.out) + first * stride + c;
    if (args.residual == nullptr && lanes == kLanes) {
        for (int64_t r = 0; r < count; ++r)
            store_rounded(out + r * stride, (load(sums + r * kTileSize) + constant) * scale);
        return;
    }
    const int shift = args.residual_shift;
    const int64_t row = (sample * (layout.height >> shift) + (y >> shift)) * (layout.width >> shift);
    const BFloat16* residual = static_cast<const BFloat16*>(args.residual);
    for (int64_t r = 0; r < count; ++r) {
        Vec value = load(sums + r * kTileSize) + constant;
        if (residual != nullptr) value += load_some(residual + (row + ((x + r) >> shift)) * stride + c, lanes);
        BFloat16 rounded[kLanes];
        store_rounded(rounded, value * scale);
        std::memcpy(static_cast<void*>(out + r * stride), rounded, size_t(lanes) * 2);
    }
}

// The positions [q, q + count) of a strip.
static void write_block(const Conv2dArgs& args, const Layout& layout, const Strip& strip, int64_t q, int64_t count,
                        int64_t c, const float* sums) {
    const int64_t row_length = layout.copied ? layout.stride : layout.width;
    const int64_t end = q + count;
    while (q < end) {
        const int64_t at = strip.first_position + q, row = at / row_length, x = at % row_length;
        const int64_t run = std::min(row_length - x, end - q), valid = std::min(run, layout.width - x);
        const int64_t sample = strip.sample + row / layout.height, y = row % layout.height;
        if (valid > 0) write_run(args, layout, sample, y, x, valid, c, sums);
        sums += run * kTileSize;
        q += run;
    }
}

static void convolve_strip(const Conv2dArgs& args, const Layout& layout, const Memory& memory, const Strip& strip,
                           int64_t panel) {
    const int64_t terms = int64_t(args.kernel) * args.kernel * (args.channels[0] + args.channels[1]);
    const float* weight = args.weight + panel * terms / 2 * kTileSize;
    for (int64_t q = 0; q < strip.positions;) {
        const int64_t left = strip.positions - q;
        const int64_t tiles = layout.copied ? (left + kTileSize - 1) / kTileSize : left / kTileSize;
        int64_t count = std::min(left, std::min<int64_t>(tiles, kBlockTiles) * kTileSize);
        const BFloat16* from[2] = {};
        for (int s = 0; s < 2 && args.channels[s] > 0; ++s) {
            const int64_t channels = args.channels[s];
            if (layout.copied) {
                from[s] = memory.strip[s] + q * channels;
                continue;
            }
            from[s] = static_cast<const BFloat16*>(args.source[s]) + (strip.first_position + q) * channels;
            if (tiles > 0) continue;
            // A tile would reach beyond the images.
            std::memcpy(static_cast<void*>(memory.strip[s]), from[s], size_t(left * channels) * 2);
            std::memset(static_cast<void*>(memory.strip[s] + left * channels), 0,
                        size_t((kTileSize - left) * channels) * 2);
            from[s] = memory.strip[s];
            count = left;
        }
        switch ((count + kTileSize - 1) / kTileSize) {
            case 1:
                multiply_block<1>(args, layout, from, weight, memory.sums);
                break;
            case 2:
                multiply_block<2>(args, layout, from, weight, memory.sums);
                break;
            case 3:
                multiply_block<3>(args, layout, from, weight, memory.sums);
                break;
            default:
                multiply_block<4>(args, layout, from, weight, memory.sums);
        }
        write_block(args, layout, strip, q, count, panel * kTileSize, memory.sums);
        q += count;
    }
}

}  // namespace

std::size_t tiles_scratch(const Conv2dArgs& args, int threads) {
    return std::size_t(Layout(args).own_bytes) * std::size_t(threads);
}

void tiles_conv2d(const Conv2dArgs& args, void* scratch, const Team& team) {
    const Layout layout(args);
    const Memory memory(args, layout, static_cast<char*>(scratch) + team.rank * layout.own_bytes);
    const int64_t panels = padded_channels(args.out_channels) / kTileSize;
    const Range range = team.share(layout.strips * panels);
    const TileScope tiles;
    int64_t copied = -1;
    for (int64_t item = range.begin; item < range.end; ++item) {
        const Strip strip(args, layout, item / panels);
        if (layout.copied && item / panels != copied) {
            copy_strip(args, layout, strip, memory);
            copied = item / panels;
        }
        convolve_strip(args, layout, memory, strip, item % panels);
    }
}

#else

std::size_t tiles_scratch(const Conv2dArgs&, int) {
    return 0;
}

void tiles_conv2d(const Conv2dArgs&, void*, const Team&) {}

#endif

}  // namespace edm_fast::cpu::EDM_FAST_ISA
