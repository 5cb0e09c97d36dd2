// The far ends of the kernels of training.
#pragma once

#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

#include "edm_fast/augment.h"
#include "edm_fast/denoising_loss.h"
#include "edm_fast/noise_augment.h"
#include "far_ends.h"

namespace far_ends {

using chosen::choose, chosen::last_of, chosen::last_rows_of, chosen::same_last;

// Black images at σ = 1, whose noisy input is the noise, for a network that gives D and has its images channels-last.
inline bool noise_augment_of_many_samples() {
    constexpr int64_t elements = 3 * 64 * 64;
    const int64_t samples = past_32_bits(elements);
    const Rows<float> out(samples, elements), images(samples, elements), rows(samples, kLevelSize), sigma(samples, 1);
    const Rows<int64_t> seeds(samples, 1);
    std::fill_n(images.last(), elements, 0.0f);
    *seeds.last() = 1234567890123;
    *sigma.last() = 1.0f;
    choose(last_rows_of(samples));
    NoiseAugmentArgs args{samples, 3, 64 * 64, {}, 7, seeds.data(), sigma.data(), rows.data(), {}, {}, {}};
    args.images = {images.data(), elements, 64 * 64, 1, kFloat32};
    args.net_input = {out.data(), elements, 1, 3, kFloat32};
    cuda::noise_augment(args, 0, nullptr);
    std::vector<float> planes(elements);
    for (int64_t i = 0; i < elements; ++i) planes[std::size_t(i % 3 * (64 * 64) + i / 3)] = out.last()[i];
    return chosen::grids().back().y == 65535 && is_noise(planes.data(), 0, elements, 1234567890123, kDomainTraining) &&
           rows.last()[kSigma] == 1.0f && rows.last()[kOutputFactor] == 1.0f;
}

// The loss of the last sample and its slope; channels-last images of three channels, or of one.
struct LossCall {
    LossCall(int64_t channels, int64_t pixels, int64_t samples)
        : output(samples, channels * pixels, 1),
          images(samples, channels * pixels, 2),
          inputs(samples, channels * pixels, 4),
          rows(samples, kLevelSize, 3),
          seeds(samples, 1),
          loss(samples, 1),
          error(samples, channels * pixels),
          slope(samples, channels * pixels) {
        *seeds.last() = 1234567890123;
        args = {samples,     channels,    pixels,      7,           seeds.data(), rows.data(), ImageView{},
                ImageView{}, ImageView{}, ImageView{}, loss.data(), ImageView{},  ImageView{}};
        args.images = view(images);
        args.model_output = view(output);
        args.error = view(error);
        args.slope = view(slope);
    }
    // The noise from the network's input.
    void read() {
        rows.last()[kSigma] = rows.last()[kInputScale] = 1.0f;
        args.net_input = view(inputs);
    }
    ImageView view(const Rows<float>& of) const { return {of.data(), of.size(), 1, args.channels, kFloat32}; }
    bool same(const LossCall& other) const {
        return same_last(loss, other.loss) && same_last(error, other.error) && same_last(slope, other.slope);
    }

    Filled<float> output, images, inputs, rows;
    Rows<int64_t> seeds;
    Rows<float> loss, error, slope;
    DenoisingLossArgs args;
};

inline bool denoising_loss(int64_t channels) {
    constexpr int64_t pixels = 64 * 64;
    const int64_t samples = past_32_bits(channels * pixels);
    LossCall many(channels, pixels, samples), alone(channels, pixels, 1);
    float drawn = 0;
    for (const bool reads : {false, true}) {
        for (LossCall* call : {&many, &alone}) {
            if (reads) call->read();
            choose(last_of(call == &many ? samples : 1));
            cuda::denoising_loss(call->args, 0, nullptr);
        }
        const float loss = *many.loss.last();
        if (!many.same(alone) || !std::isfinite(loss) || loss == drawn) return false;
        drawn = loss;
    }
    return true;
}

inline bool denoising_loss_of_many_samples() {
    return denoising_loss(1) && denoising_loss(3);
}

// The last sample moved, turned by a sixth and recoloured.
struct AugmentCall {
    static constexpr int64_t kSize = 64, kElements = 3 * kSize * kSize;

    explicit AugmentCall(int64_t samples)
        : images(samples, kElements, 1),
          colour(samples, 12, 2),
          geometry(samples, 6, 3),
          blit(samples, 5),
          out(samples, kElements) {
        const float matrix[] = {0.5f, -0.866f, 1.5f, 0.866f, 0.5f, -2.0f};
        const int32_t moves[] = {1, 0, 1, 5, -7};
        std::copy(std::begin(matrix), std::end(matrix), geometry.last());
        std::copy(std::begin(moves), std::end(moves), blit.last());
        args = {samples, 3, kSize, kSize, view(images), view(out), blit.data(), geometry.data(), colour.data()};
    }
    static ImageView view(const Rows<float>& rows) { return {rows.data(), kElements, kSize * kSize, 1, kFloat32}; }

    Filled<float> images, colour, geometry;
    Rows<int32_t> blit;
    Rows<float> out;
    AugmentArgs args;
};

inline bool augment() {
    const int64_t samples = past_32_bits(AugmentCall::kElements);
    const AugmentCall many(samples), alone(1);
    for (const AugmentCall* call : {&many, &alone}) {
        choose(last_of(call->args.samples));
        cuda::augment(call->args, 0, nullptr);
    }
    return same_last(many.out, alone.out) && std::isfinite(*many.out.last());
}

}  // namespace far_ends
