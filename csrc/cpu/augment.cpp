// A thread does whole samples, of these four channels at a time, in memory that stays in its cache.
#include "edm_fast/augment.h"

#include <cstddef>
#include <cstdint>

#include "augment_warp.h"
#include "batch.h"
#include "scratch.h"
#include "team.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

namespace {

// Four channels of a sample, or the last few.
struct Channels {
    int64_t first;
    int count;

    const float* of(const ImageView& view, int64_t sample) const {
        return static_cast<const float*>(view.data) + sample * view.sample_stride + first * view.channel_stride;
    }
};

struct Memory {
    int64_t *row_part, *column_part;  // of the pixels to read: [y.pixels], [x.pixels] with a warp, else [H], [W]
    float* quads;                     // [H, W] Quads

    Memory(const AugmentArgs& args, int64_t rows, int64_t columns, Arena& arena) {
        row_part = arena.take<int64_t>(rows);
        column_part = arena.take<int64_t>(columns);
        quads = arena.take<float>(args.height * args.width * kQuad);
    }
};

constexpr int64_t kNoPixel = -1;

// Reads pixel row_part + column_part of each row and column; 0 where there is none, and for the channels beyond
// `count`.
void read_quads(const ImageView& view, const float* base, int count, const int64_t* row_part, int64_t rows,
                const int64_t* column_part, int64_t columns, float* to) {
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t column = 0; column < columns; ++column, to += kQuad) {
            Quad value{};
            if (row_part[row] != kNoPixel && column_part[column] != kNoPixel) {
                const float* from = base + (row_part[row] + column_part[column]) * view.pixel_stride;
                for (int c = 0; c < count; ++c) value[c] = from[c * view.channel_stride];
            }
            put_quad(to, value);
        }
    }
}

void move(const AugmentArgs& args, int64_t sample, Channels channels, const Memory& memory) {
    const Blit blit(args, sample);
    for (int64_t row = 0; row < args.height; ++row) memory.row_part[row] = blit.row_part(int(row));
    for (int64_t column = 0; column < args.width; ++column) memory.column_part[column] = blit.column_part(int(column));
    read_quads(args.images, channels.of(args.images, sample), channels.count, memory.row_part, args.height,
               memory.column_part, args.width, memory.quads);
}

void move_and_warp(const AugmentArgs& args, int64_t sample, Channels channels, const WarpPlan& plan,
                   const Memory& memory, const WarpMemory& warp_memory) {
    const Blit blit(args, sample);
    for (int64_t i = 0; i < plan.y.pixels(); ++i) {
        const int64_t row = plan.y.first_pixel() + i;
        memory.row_part[i] = plan.y.has_pixel(row) ? blit.row_part(reflected(int(row), blit.height)) : kNoPixel;
    }
    for (int64_t i = 0; i < plan.x.pixels(); ++i) {
        const int64_t column = plan.x.first_pixel() + i;
        memory.column_part[i] =
            plan.x.has_pixel(column) ? blit.column_part(reflected(int(column), blit.width)) : kNoPixel;
    }
    for (int64_t i = 0; i < plan.y.pixels(); ++i) {
        read_quads(args.images, channels.of(args.images, sample), channels.count, memory.row_part + i, 1,
                   memory.column_part, plan.x.pixels(), warp_memory.pixels);
        up_along_x(plan, warp_memory, i);
    }
    warp_quads(plan, warp_memory, memory.quads);
}

void recolour(const AugmentArgs& args, int64_t sample, float* quads) {
    const Colour colour(args, sample);
    if (colour.matrix == nullptr) return;
    Quad gain[3], offset{};
    for (int c = 0; c < 3; ++c) {
        gain[c] = Quad{colour.gain(0, c), colour.gain(1, c), colour.gain(2, c), 0.0f};
        offset[c] = colour.offset(c);
    }
    for (int64_t i = 0; i < args.height * args.width; ++i, quads += kQuad) {
        const Quad value = quad_at(quads);
        put_quad(quads, gain[0] * value[0] + gain[1] * value[1] + gain[2] * value[2] + offset);
    }
}

void write_quads(const AugmentArgs& args, int64_t sample, Channels channels, const float* quads) {
    float* base =
        static_cast<float*>(args.out.data) + sample * args.out.sample_stride + channels.first * args.out.channel_stride;
    for (int c = 0; c < channels.count; ++c) {
        float* to = base + c * args.out.channel_stride;
        for (int64_t i = 0; i < args.height * args.width; ++i) to[i * args.out.pixel_stride] = quads[i * kQuad + c];
    }
}

// Without memory, only the bytes that the sample needs.
std::size_t augment_sample(const AugmentArgs& args, int64_t sample, void* memory) {
    const Warp warp(args, sample);
    const WarpPlan plan(args, warp);
    Arena arena(memory);
    const Memory plain(args, warp.identity ? args.height : plan.y.pixels(),
                       warp.identity ? args.width : plan.x.pixels(), arena);
    const WarpMemory for_warp = warp.identity ? WarpMemory() : WarpMemory(plan, arena);
    for (int64_t first = 0; memory != nullptr && first < args.channels; first += kQuad) {
        const int64_t left = args.channels - first;
        const Channels channels{first, left < kQuad ? int(left) : kQuad};
        if (warp.identity) {
            move(args, sample, channels, plain);
        } else {
            move_and_warp(args, sample, channels, plan, plain, for_warp);
        }
        recolour(args, sample, plain.quads);
        write_quads(args, sample, channels, plain.quads);
    }
    return arena.bytes();
}

}  // namespace

void augment(const AugmentArgs& args, int threads) {
    const int64_t elements = args.samples * args.channels * args.height * args.width;
    // A warp is some hundred operations for each element.
    const int useful = args.geometry != nullptr ? threads : useful_threads(elements, threads);
    std::size_t bytes = 0;
    for (int64_t sample = 0; sample < args.samples; ++sample) {
        const std::size_t needed = augment_sample(args, sample, nullptr);
        bytes = needed > bytes ? needed : bytes;
    }
    char* const memory = static_cast<char*>(scratch(bytes * std::size_t(useful)));
    run_team(useful, [&](const Team& team) {
        // In turn, since samples with a warp may stand together.
        for (int64_t sample = team.rank; sample < args.samples; sample += team.size) {
            augment_sample(args, sample, memory + bytes * std::size_t(team.rank));
        }
    });
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
