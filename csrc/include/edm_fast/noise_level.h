// The noise level of a training sample, and the numbers that the network's input and the loss need of it.
//
//   σ = exp(a + b z)                        log-normal          z = normal(seed, draw, element 0), u from the same word
//   σ = exp(a + b u)                        log-uniform         u in (0, 1)
//   σ = a + b u                             uniform
//   σ = √(exp(½ a t² + b t) - 1)            VP, t = 1 + u (c - 1)
//
// With D = c_skip x + c_out F and x = y + σ n, the error that the loss squares needs no difference of large numbers:
//
//   D - y = (c_skip - 1) y + c_skip σ n + c_out F
//
// All of it is computed in double from σ rounded to float, but for VP's noise label, and then rounded to float.
#pragma once

#include <cmath>
#include <cstdint>

#include "edm_fast/normal.h"

namespace edm_fast {

// The codes of these two are part of the binding: edm_fast/ops/noise_augment.py holds the same lists.
enum SigmaSource : int32_t { kSigmaGiven = 0, kRowsGiven = 1, kLogNormal = 2, kLogUniform = 3, kUniform = 4, kVp = 5 };
enum Preconditioning : int32_t { kDenoiser = 0, kEdmPrecond = 1, kVpPrecond = 2, kVePrecond = 3 };

struct LevelRule {
    SigmaSource source;
    double a, b, c;
    Preconditioning preconditioning;  // kDenoiser: the network gives D itself
    double sigma_data;                // of kEdmPrecond
    double beta_d, beta_min, levels;  // of kVpPrecond: c_noise = (levels - 1) σ⁻¹(σ)
    double weight_sigma_data;         // weight (σ² + s²)/(σ s)²; 0: weight 1/σ²
};

// A row of kLevelSize floats per sample.
enum LevelColumn { kSigma, kInputScale, kNoiseLabel, kWeight, kImageFactor, kNoiseFactor, kOutputFactor, kLevelSize };

// What a sample's σ is drawn from: its own stream, which noise never touches.
EDM_FAST_HOST_DEVICE float drawn_sigma(const LevelRule& rule, uint64_t seed, uint32_t draw) {
    const PhiloxWords words = noise_words(seed, 0, draw, kDomainNoiseLevel);
    const double u = (double(words.x) + 0.5) * 0x1p-32;
    switch (rule.source) {
        case kLogNormal:
            return float(exp(rule.a + rule.b * double(normals_from_words(words).x)));
        case kLogUniform:
            return float(exp(rule.a + rule.b * u));
        case kUniform:
            return float(rule.a + rule.b * u);
        default: {
            const double t = 1.0 + u * (rule.c - 1.0);
            return float(sqrt(expm1(0.5 * rule.a * t * t + rule.b * t)));
        }
    }
}

EDM_FAST_HOST_DEVICE void level_row(const LevelRule& rule, float sigma_rounded, float* row) {
    const double sigma = double(sigma_rounded);
    double c_skip_minus_1 = -1.0, c_out = 1.0, c_in = 1.0, c_noise = sigma;
    if (rule.preconditioning == kEdmPrecond) {
        const double data = rule.sigma_data * rule.sigma_data, all = sigma * sigma + data;
        c_skip_minus_1 = -sigma * sigma / all;
        c_out = sigma * rule.sigma_data / sqrt(all);
        c_in = 1.0 / sqrt(all);
        c_noise = log(sigma) / 4.0;
    } else if (rule.preconditioning == kVpPrecond) {
        // In float as written, as VPPrecond has it: near 0 the rounding of 1 + σ² is part of what was trained.
        const float beta_d = float(rule.beta_d), beta_min = float(rule.beta_min);
        const float logarithm = float(log(double(1.0f + sigma_rounded * sigma_rounded)));
        const float root = sqrtf(beta_min * beta_min + 2.0f * beta_d * logarithm);
        c_skip_minus_1 = 0.0;
        c_out = -sigma;
        c_in = 1.0 / sqrt(sigma * sigma + 1.0);
        c_noise = (rule.levels - 1.0) * double((root - beta_min) / beta_d);
    } else if (rule.preconditioning == kVePrecond) {
        c_skip_minus_1 = 0.0;
        c_out = sigma;
        c_noise = log(0.5 * sigma);
    }
    const double s = rule.weight_sigma_data;
    row[kSigma] = sigma_rounded;
    row[kInputScale] = float(c_in);
    row[kNoiseLabel] = float(c_noise);
    row[kWeight] = float(s == 0.0 ? 1.0 / (sigma * sigma) : (sigma * sigma + s * s) / (sigma * s * (sigma * s)));
    row[kImageFactor] = float(c_skip_minus_1);
    row[kNoiseFactor] = float((c_skip_minus_1 + 1.0) * sigma);
    row[kOutputFactor] = float(c_out);
}

}  // namespace edm_fast
