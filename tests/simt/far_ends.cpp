// Kernels at the far end of tensors whose elements 32 bits do not count: `far_ends SCENARIO` prints "right", "wrong" or
// "no space". The last sample of a huge batch must come out as it does alone, to the bit.
#include "far_ends.h"

#include <cmath>
#include <cstdio>
#include <iterator>
#include <string>
#include <type_traits>

#include "edm_fast/group_norm_silu.h"
#include "edm_fast/randn.h"
#include "edm_fast/resample.h"
#include "edm_fast/residual.h"
#include "edm_fast/solver_step.h"
#include "far_ends_conv.h"
#include "far_ends_training.h"

using namespace edm_fast;
using chosen::choose, chosen::last_in_turn, chosen::last_of, chosen::last_rows_of, chosen::Rows, chosen::same_last;
using namespace far_ends;

namespace {

// Call(shape, samples).run() with many samples and with one.
template <class Call>
bool last_as_alone(const typename Call::Shape& shape, int64_t samples, const chosen::Choice& blocks) {
    Call many(shape, samples), alone(shape, 1);
    choose(blocks);
    many.run();
    choose(chosen::all);
    alone.run();
    return many.same(alone);
}

struct ResidualShape {
    int64_t pixels, channels;
    bool moments;
};

template <class T>
struct ResidualCall {
    using Shape = ResidualShape;
    Shape shape;
    int64_t samples;
    Filled<T> a{samples, shape.pixels * shape.channels, 1}, b{samples, shape.pixels * shape.channels, 2};
    Filled<float> bias{1, shape.channels, 3};
    Rows<T> out{samples, shape.pixels * shape.channels};
    Rows<float> moments{samples, 2 * shape.channels};

    ResidualCall(const Shape& s, int64_t n) : shape(s), samples(n) {}
    void run() const {
        cuda::residual({samples, shape.pixels, shape.channels, kDtype<T>, a.data(), b.data(), bias.data(), 0.75f,
                        out.data(), shape.channels, shape.moments ? moments.data() : nullptr},
                       0, nullptr);
    }
    bool same(const ResidualCall& other) const {
        return same_last(out, other.out) && (!shape.moments || same_last(moments, other.moments));
    }
};

template <class T, bool kMoments, int64_t kChannels>
bool residual() {
    const int64_t samples = past_32_bits(96 * kChannels);
    return last_as_alone<ResidualCall<T>>({96, kChannels, kMoments}, samples, last_of(samples));
}

// More tiles than a grid has blocks: some blocks take two.
bool residual_of_more_tiles_than_blocks() {
    const int64_t samples = (int64_t{1} << 31) + 5;
    return last_as_alone<ResidualCall<Half>>({1, 8, false}, samples, last_in_turn(samples)) &&
           last_as_alone<ResidualCall<Half>>({1, 8, true}, samples, last_in_turn(samples));
}

struct ResampleShape {
    int64_t height, width, channels;
    int direction;
};

Resampling four_taps(int direction) {
    return {direction, 4, 1, {0.125f, 0.375f, 0.375f, 0.125f}};
}

template <class T>
struct ResampleCall {
    using Shape = ResampleShape;
    Shape shape;
    int64_t samples;
    int64_t out_pixels = shape.direction > 0 ? 4 * shape.height * shape.width : shape.height * shape.width / 4;
    Filled<T> x{samples, shape.height * shape.width * shape.channels, 1};
    Rows<T> out{samples, out_pixels * shape.channels};

    ResampleCall(const Shape& s, int64_t n) : shape(s), samples(n) {}
    void run() const {
        cuda::resample({samples, shape.height, shape.width, shape.channels, kDtype<T>, four_taps(shape.direction),
                        x.data(), out.data()},
                       0, nullptr);
    }
    bool same(const ResampleCall& other) const { return same_last(out, other.out); }
};

// Of the grid for a sample of 16 rows: upwards for the 32 rows of output two by two, the first and the last of them
// alone.
constexpr int64_t kRowsUp = 17, kRowsDown = 8;

template <class T, int kDirection, int64_t kChannels>
bool resample() {
    const int64_t samples = past_32_bits(16 * 16 * kChannels);
    const int64_t rows = kDirection > 0 ? kRowsUp : kRowsDown;
    return last_as_alone<ResampleCall<T>>({16, 16, kChannels, kDirection}, samples, last_rows_of(samples * rows, rows));
}

// More output pixels than 2^32, of one channel each.
bool resample_of_many_pixels() {
    const int64_t samples = past_32_bits(32 * 32);
    return last_as_alone<ResampleCall<Half>>({16, 16, 1, 1}, samples, last_rows_of(samples * kRowsUp, kRowsUp));
}

struct NormShape {
    int64_t size, channels[2];
    int64_t groups;
    int direction;
    bool addend, moments;
};

// The forward with all that it can have, and the gradients of everything.
template <class T>
struct NormCall {
    using Shape = NormShape;
    Shape shape;
    int64_t samples;
    int64_t channels = shape.channels[0] + shape.channels[1], pixels = shape.size * shape.size;
    int64_t out_pixels = shape.direction > 0 ? 4 * pixels : shape.direction < 0 ? pixels / 4 : pixels;

    Filled<T> x{samples, pixels * shape.channels[0], 1}, x2{samples, pixels * shape.channels[1], 2};
    Filled<T> addend{samples, shape.addend ? pixels * channels : 0, 3};
    Filled<float> moments{samples, 2 * shape.channels[0], 4}, moments2{samples, 2 * shape.channels[1], 5};
    Filled<float> weight{1, channels, 6}, bias{1, channels, 7};
    Filled<float> pre_bias{samples, channels, 8}, scale{samples, channels, 9}, shift{samples, channels, 10};
    Rows<T> out{samples, out_pixels * channels}, plain{samples, out_pixels * channels};
    Rows<T> sum{samples, shape.addend ? pixels * channels : 0};
    Rows<float> mean{samples, shape.groups}, rstd{samples, shape.groups};

    NormCall(const Shape& s, int64_t n) : shape(s), samples(n) {
        for (const auto* rows : {&moments, &moments2}) {
            for (int64_t i = 1; i < rows->size(); i += 2) rows->last()[i] = std::fabs(rows->last()[i]) + 0.5f;
        }
    }
    GroupNormSiluArgs args() const {
        GroupNormSiluArgs args{};
        args.samples = samples;
        args.height = args.width = shape.size;
        args.groups = shape.groups;
        args.dtype = kDtype<T>;
        args.source[0] = x.data();
        args.source[1] = shape.channels[1] > 0 ? x2.data() : nullptr;
        for (int i = 0; i < 2; ++i) args.channels[i] = args.source_stride[i] = shape.channels[i];
        if (shape.addend) {
            args.addend = addend.data();
            args.sum = sum.data();
            args.sum_scale = 0.75f;
        }
        args.moments[0] = shape.moments ? moments.data() : nullptr;
        args.moments[1] = shape.moments && shape.channels[1] > 0 ? moments2.data() : nullptr;
        args.moments_chunk = args.height * args.width;
        args.weight = weight.data();
        args.bias = bias.data();
        args.pre_bias = pre_bias.data();
        args.scale = scale.data();
        args.shift = shift.data();
        args.pre_bias_stride = args.modulation_stride = channels;
        args.eps = 1e-5f;
        args.silu = true;
        args.resampling = shape.direction != 0 ? four_taps(shape.direction) : Resampling{};
        args.out = out.data();
        args.plain = plain.data();
        args.mean = mean.data();
        args.rstd = rstd.data();
        return args;
    }
    void run() const { cuda::group_norm_silu(args(), 0, nullptr); }
    bool same(const NormCall& other) const {
        return same_last(out, other.out) && same_last(plain, other.plain) && same_last(sum, other.sum) &&
               same_last(mean, other.mean) && same_last(rstd, other.rstd);
    }
};

template <class T>
struct NormGradCall : NormCall<T> {
    using Shape = NormShape;
    using Forward = NormCall<T>;
    Filled<T> grad_out{this->samples, this->out.size(), 11}, grad_plain{this->samples, this->out.size(), 12};
    Filled<T> grad_sum{this->samples, this->sum.size(), 13};
    Rows<T> grad_x{this->samples, this->x.size()}, grad_x2{this->samples, this->x2.size()};
    Rows<float> rows[5] = {{this->samples, this->channels},
                           {this->samples, this->channels},
                           {this->samples, this->channels},
                           {this->samples, this->channels},
                           {this->samples, this->channels}};

    using Forward::Forward;
    void run() const {
        // The backward takes any statistics.
        for (int64_t i = 0; i < this->shape.groups; ++i) {
            this->mean.last()[i] = pattern(i, 14);
            this->rstd.last()[i] = std::fabs(pattern(i, 15)) + 0.5f;
        }
        GroupNormSiluGradArgs grad{};
        grad.forward = this->args();
        grad.grad_out = grad_out.data();
        grad.grad_plain = grad_plain.data();
        grad.grad_sum = this->shape.addend ? grad_sum.data() : nullptr;
        grad.grad_source[0] = grad_x.data();
        grad.grad_source[1] = this->shape.channels[1] > 0 ? grad_x2.data() : nullptr;
        grad.grad_pre_bias = rows[0].data();
        grad.grad_weight = rows[1].data();
        grad.grad_bias = rows[2].data();
        grad.grad_scale = rows[3].data();
        grad.grad_shift = rows[4].data();
        cuda::group_norm_silu_grad(grad, 0, nullptr);
    }
    bool same(const NormGradCall& other) const {
        bool same = same_last(grad_x, other.grad_x);
        if (this->shape.channels[1] > 0) same = same && same_last(grad_x2, other.grad_x2);
        for (int i = 0; i < 5; ++i) same = same && same_last(rows[i], other.rows[i]);
        return same;
    }
};

// How many launches a call takes tells which kernels those are.
template <class Call>
bool norm(const NormShape& shape, std::size_t launches) {
    const int64_t samples = past_32_bits(shape.size * shape.size * (shape.channels[0] + shape.channels[1]));
    return last_as_alone<Call>(shape, samples, last_of(samples)) && chosen::grids().size() == launches;
}

bool norm_resident() {
    return norm<NormCall<Half>>({16, {40, 24}, 16, 0, false, false}, 1) &&
           norm<NormCall<Half>>({16, {64, 0}, 16, 0, true, false}, 1) &&
           norm<NormCall<Half>>({16, {40, 24}, 16, 1, false, false}, 1) &&
           norm<NormCall<float>>({16, {64, 0}, 16, -1, true, false}, 1) &&
           norm<NormCall<Half>>({16, {13, 8}, 3, 0, false, false}, 1);
}

bool norm_with_moments() {
    return norm<NormCall<Half>>({16, {40, 24}, 16, 0, false, true}, 1) &&
           norm<NormCall<Half>>({16, {40, 24}, 16, 1, false, true}, 1) &&
           norm<NormCall<float>>({16, {13, 8}, 3, -1, false, true}, 1);
}

// Images of one pixel: also the moments, the rows and the statistics are past 2^32 then.
bool norm_of_many_rows() {
    return norm<NormCall<Half>>({1, {40, 24}, 64, 0, false, true}, 1) &&
           norm<NormCall<Half>>({1, {40, 24}, 64, 0, false, false}, 1);
}

// A group of everything is more than shared memory holds.
bool norm_streaming() {
    return norm<NormCall<float>>({128, {16, 16}, 1, 0, false, false}, 2) &&
           norm<NormCall<float>>({128, {32, 0}, 1, -1, true, false}, 2) &&
           norm<NormCall<Half>>({128, {17, 16}, 1, 0, false, false}, 2);
}

bool norm_gradients() {
    return norm<NormGradCall<float>>({128, {16, 16}, 8, 0, false, false}, 2) &&
           norm<NormGradCall<Half>>({128, {32, 0}, 8, -1, true, false}, 2) &&
           norm<NormGradCall<Half>>({128, {11, 10}, 3, 0, false, false}, 2);
}

// One image of more than 2^32 elements: its last row is that of an image which has no other. The moments are given, and
// the pixels of both are a power of two apart, so that their means round alike.
bool norm_of_a_large_image() {
    constexpr int64_t channels = 64, width = 4100, height = int64_t{1} << 14;
    const chosen::Space<Half> x(height * width * channels), out(height * width * channels);
    const Filled<Half> row(1, width * channels, 1);
    const Rows<Half> row_out(1, width * channels);
    const Filled<float> weight(1, channels, 2), bias(1, channels, 3), moments(1, 2 * channels, 4);
    for (int64_t i = 1; i < 2 * channels; i += 2) moments.data()[i] = 1.0f;
    const int64_t first = (height - 1) * width * channels, bytes = 2 * width * channels;
    std::memcpy(x.data() + first, row.data(), std::size_t(bytes));
    GroupNormSiluArgs args{};
    args.samples = 1;
    args.height = height;
    args.width = width;
    args.channels[0] = args.source_stride[0] = channels;
    args.groups = 16;
    args.dtype = kFloat16;
    args.source[0] = x.data();
    args.moments[0] = moments.data();
    args.moments_chunk = height * width;
    args.weight = weight.data();
    args.bias = bias.data();
    args.eps = 1e-5f;
    args.silu = true;
    args.out = out.data();
    // Blocks are numbered chunks first, and all channels are one slab: the last 17 have the last row.
    choose([](dim3 grid) {
        std::vector<uint3> blocks;
        for (unsigned x = grid.x - 17; x < grid.x; ++x) blocks.push_back({x, 0, 0});
        return blocks;
    });
    cuda::group_norm_silu(args, 0, nullptr);
    args.height = 1;
    args.moments_chunk = width;
    args.source[0] = row.data();
    args.out = row_out.data();
    choose(last_of(1));
    cuda::group_norm_silu(args, 0, nullptr);
    return std::memcmp(out.data() + first, row_out.data(), std::size_t(bytes)) == 0;
}

bool randn_of_many_samples() {
    constexpr int64_t elements = 3 * 64 * 64;
    const int64_t samples = past_32_bits(elements);
    const Rows<float> out(samples, elements);
    const Rows<int64_t> seeds(samples, 1);
    *seeds.last() = 1234567890123;
    choose(last_rows_of(samples));
    cuda::randn({samples, 3, 64 * 64, seeds.data(), 7, kDomainSampler, {out.data(), elements, 64 * 64, 1, kFloat32}}, 0,
                nullptr);
    return chosen::grids().back().y == 65535 && is_noise(out.last(), 0, elements, 1234567890123);
}

bool randn_of_a_large_image() {
    constexpr int64_t pixels = 40000 * 40000, elements = 3 * pixels, quads = elements / 4;
    const chosen::Space<float> out(elements);
    const int64_t seed = 1234567890123;
    choose(last_in_turn((quads + 255) / 256));
    cuda::randn({1, 3, pixels, &seed, 7, kDomainSampler, {out.data(), elements, pixels, 1, kFloat32}}, 0, nullptr);
    const int64_t first = (quads - 1) / 256 * 1024, stride = int64_t{65535} * 1024;
    // The block comes to the end in strides of the grid, several of them past 2^32 elements.
    return chosen::grids().back().x == 65535 && elements > kTwo32 + stride &&
           is_noise(out.data() + first, first, elements - first, uint64_t(seed)) &&
           is_noise(out.data() + first - stride, first - stride, 1024, uint64_t(seed));
}

struct StepShape {
    int64_t channels, pixels;
};

template <class State, DType kState>
struct StepCall {
    using Shape = StepShape;
    Shape shape;
    int64_t samples;
    int64_t elements = shape.channels * shape.pixels;
    Filled<State> x{samples, elements, 1}, other{samples, elements, 2};
    Filled<Half> output{samples, elements, 3}, guide{samples, elements, 4};
    Rows<Half> input{samples, elements};
    Rows<float> denoised{samples, elements};
    Rows<int64_t> seeds{samples, 1};
    double table[kRowSize] = {};

    StepCall(const Shape& s, int64_t n) : shape(s), samples(n) {
        *seeds.last() = 1234567890123;
        table[kDenoisedFromState] = 0.5;
        table[kDenoisedFromModel] = 0.75;
        table[kDenoisedFromGuide] = -0.25;
        for (int i = 0; i < 2 * kUpdateTerms; ++i) table[kUpdate + i] = 0.125 * (i + 1);
        table[kUpdate + 2] = table[kUpdate + 3] = 0;
        table[kUpdate + kUpdateTerms + 2] = table[kUpdate + kUpdateTerms + 3] = 0;
        table[kNetInputScale] = 0.625;
        table[kDraw] = 3;
    }
    // The input is channels-last.
    void run() const {
        SolverStepArgs args{};
        args.samples = samples;
        args.channels = shape.channels;
        args.pixels = shape.pixels;
        args.table = table;
        args.state_dtype = kState;
        args.state[0] = {x.data(), elements, shape.pixels, 1, kState};
        args.state[1] = {other.data(), elements, shape.pixels, 1, kState};
        args.model_output = {output.data(), elements, 1, shape.channels, kFloat16};
        args.guide_output = {guide.data(), elements, shape.pixels, 1, kFloat16};
        args.seeds = seeds.data();
        args.net_input = {input.data(), elements, 1, shape.channels, kFloat16};
        args.denoised = {denoised.data(), elements, shape.pixels, 1, kFloat32};
        cuda::solver_step(args, 0, nullptr);
    }
    bool same(const StepCall& alone) const {
        return same_last(x, alone.x) && same_last(other, alone.other) && same_last(input, alone.input) &&
               same_last(denoised, alone.denoised);
    }
};

template <class State, DType kState>
bool solver_step() {
    const int64_t samples = past_32_bits(3 * 64 * 64);
    return last_as_alone<StepCall<State, kState>>({3, 64 * 64}, samples, last_rows_of(samples));
}

// More pixels than a grid has blocks for; the network's input is channels-last.
bool solver_step_of_a_large_image() {
    constexpr int64_t tile = 128, grid = 65535, pixels = (2 * grid + 1) * tile - 4, elements = 3 * pixels;
    const chosen::Space<float> x(elements);
    const chosen::Space<Half> input(elements);
    const int64_t seed = 1234567890123;
    double table[kRowSize] = {};
    table[kUpdate + kRegisters + 1] = 1;  // x is the noise
    table[kNetInputScale] = 0.5;
    table[kDraw] = 7;
    SolverStepArgs args{};
    args.samples = 1;
    args.channels = 3;
    args.pixels = pixels;
    args.table = table;
    args.state_dtype = kFloat32;
    args.state[0] = {x.data(), elements, pixels, 1, kFloat32};
    args.seeds = &seed;
    args.net_input = {input.data(), elements, 1, 3, kFloat16};
    choose(last_in_turn(2 * grid + 1));
    cuda::solver_step(args, 0, nullptr);
    for (const int64_t first : {int64_t{0}, grid * tile, 2 * grid * tile}) {
        const int64_t count = std::min(tile, pixels - first);
        for (int64_t channel = 0; channel < 3; ++channel) {
            const float* const values = x.data() + channel * pixels + first;
            if (!is_noise(values, channel * pixels + first, count, uint64_t(seed))) return false;
            for (int64_t i = 0; i < count; ++i) {
                if (input.data()[3 * (first + i) + channel].bits != to_half(0.5f * values[i]).bits) return false;
            }
        }
    }
    return true;
}

struct Scenario {
    const char* name;
    bool (*run)();
};

constexpr Scenario kScenarios[] = {
    {"residual", residual<Half, false, 64>},
    {"residual_with_moments", residual<float, true, 32>},
    {"residual_unaligned", residual<Half, true, 21>},
    {"residual_of_more_tiles_than_blocks", residual_of_more_tiles_than_blocks},
    {"resample_down", resample<Half, -1, 64>},
    {"resample_up", resample<Half, 1, 64>},
    {"resample_unaligned", resample<Half, 1, 21>},
    {"resample_of_many_pixels", resample_of_many_pixels},
    {"norm_resident", norm_resident},
    {"norm_with_moments", norm_with_moments},
    {"norm_of_many_rows", norm_of_many_rows},
    {"norm_streaming", norm_streaming},
    {"norm_gradients", norm_gradients},
    {"norm_of_a_large_image", norm_of_a_large_image},
    {"conv2d_split_in_one_part", far_ends::conv2d_split_in_one_part},
    {"conv2d_split_in_parts", far_ends::conv2d_split_in_parts},
    {"randn_of_many_samples", randn_of_many_samples},
    {"randn_of_a_large_image", randn_of_a_large_image},
    {"noise_augment_of_many_samples", noise_augment_of_many_samples},
    {"denoising_loss", far_ends::denoising_loss_of_many_samples},
    {"augment", far_ends::augment},
    {"solver_step_float64", solver_step<double, kFloat64>},
    {"solver_step_float32", solver_step<float, kFloat32>},
    {"solver_step_of_a_large_image", solver_step_of_a_large_image},
};

}  // namespace

int main(int argc, char** argv) {
    for (const Scenario& scenario : kScenarios) {
        if (argc != 2 || scenario.name != std::string(argv[1])) continue;
        try {
            std::puts(scenario.run() ? "right" : "wrong");
        } catch (const chosen::NoSpace&) {
            std::puts("no space");
        } catch (const std::exception& error) {
            std::puts(error.what());
        }
        return 0;
    }
    for (const Scenario& scenario : kScenarios) std::puts(scenario.name);
    return 2;
}
