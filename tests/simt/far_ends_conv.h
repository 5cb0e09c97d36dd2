// The far end of conv2d_split: the last sample of a batch that takes many launches.
#pragma once

#include "edm_fast/conv2d_split.h"
#include "far_ends.h"

namespace far_ends {

struct ConvCall {
    struct Shape {
        int64_t side, in_channels, out_channels;
        int32_t kernel;
    };
    Shape shape;
    int64_t samples;
    int64_t pixels = shape.side * shape.side;
    int64_t tiles = samples * conv2d_split_tiles(pixels, shape.out_channels);
    Filled<Half> x{samples, pixels * shape.in_channels, 1};
    Filled<Half> weight{1, shape.out_channels * shape.kernel * shape.kernel * shape.in_channels, 2};
    Filled<float> bias{1, shape.out_channels, 3};
    Filled<Half> residual{samples, pixels * shape.out_channels, 4};
    chosen::Rows<Half> out{samples, pixels * shape.out_channels};
    chosen::Rows<float> moments{samples, conv2d_split_ceil(pixels, kSplitTile) * shape.out_channels * 2};
    int64_t floats = conv2d_split_partial(samples, pixels, shape.in_channels, shape.out_channels, shape.kernel);
    chosen::Space<float> partial{floats};
    chosen::Space<uint32_t> arrived{tiles};

    ConvCall(const Shape& s, int64_t n) : shape(s), samples(n) {}
    void run() const {
        cuda::conv2d_split({samples, shape.side, shape.side, shape.in_channels, shape.out_channels, shape.kernel,
                            shape.kernel / 2, kFloat16, x.data(), weight.data(), bias.data(), residual.data(), 0.75f,
                            out.data(), moments.data(), partial.data(), arrived.data()},
                           0, nullptr);
    }
    bool same(const ConvCall& other) const {
        return chosen::same_last(out, other.out) && chosen::same_last(moments, other.moments);
    }
    // Parts of sums went to where they belong, at the end of their memory.
    bool fills_its_parts() const { return floats == 0 || partial.data()[floats - kSplitTile * kSplitTile] != 0.0f; }
};

// The last sample's blocks of the last of many launches; a launch goes through z by samples and their parts.
inline bool conv2d_split_of(const ConvCall::Shape& shape) {
    const int64_t pixels = shape.side * shape.side;
    const int64_t samples = past_32_bits(pixels * std::max(shape.in_channels, shape.out_channels));
    const int64_t parts = conv2d_split_parts(pixels, shape.in_channels, shape.out_channels, shape.kernel);
    ConvCall many(shape, samples), alone(shape, 1);
    const auto last_of = [parts](int64_t all) {
        return [=, seen = int64_t{0}](dim3 grid) mutable {
            seen += grid.z / parts;
            std::vector<uint3> blocks;
            for (unsigned z = unsigned(grid.z - parts); seen == all && z < grid.z; ++z) {
                for (unsigned y = 0; y < grid.y; ++y) {
                    for (unsigned x = 0; x < grid.x; ++x) blocks.push_back({x, y, z});
                }
            }
            return blocks;
        };
    };
    chosen::choose(last_of(samples));
    many.run();
    const bool in_many_launches = chosen::grids().size() > 1;
    chosen::choose(last_of(1));
    alone.run();
    return many.same(alone) && in_many_launches && many.fills_its_parts();
}

inline bool conv2d_split_in_one_part() {
    return conv2d_split_of({8, 64, 64, 1});
}

// Parts of the sum past 2^32 floats, and channels that are no whole packs.
inline bool conv2d_split_in_parts() {
    return conv2d_split_of({8, 64, 70, 3});
}

}  // namespace far_ends
