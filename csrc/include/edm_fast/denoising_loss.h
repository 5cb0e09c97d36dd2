// denoising_loss: the weighted squared error of the denoiser, from the raw output F of its network,
//
//   e = D - y = (c_skip - 1) y + c_skip σ n + c_out F,   error = w e²,   loss = sum of error over the sample
//
// and with it, where a backward pass will follow, the error's derivative by F, slope = 2 w c_out e: the gradient is
// then slope times that of the loss or of the error, and the noise is not needed again. It is the noise that
// noise_augment added: given, or taken from the network's input, σ n = net_input / c_in - y, where that loses nothing
// that counts, or made again from the same seed and draw.
#pragma once

#include <cmath>
#include <cstdint>

#include "edm_fast/image_view.h"
#include "edm_fast/noise_level.h"

namespace edm_fast {

// The least σ whose noise is taken from the network's input. Below it the two roundings of that input, some 2^-24 of
// the images, would be more than 1e-6 of the noise.
constexpr float kLeastReadableSigma = 0.0625f;

// The domain of training's noise is kDomainTraining.
struct DenoisingLossArgs {
    int64_t samples, channels, pixels;
    uint32_t draw;
    const int64_t* seeds;    // [samples], unless there is noise
    const float* rows;       // [samples, kLevelSize], of noise_augment
    ImageView images;        // y
    ImageView noise;         // n, if the caller brings it
    ImageView net_input;     // c_in (y + σ n) in float32, or absent
    ImageView model_output;  // F
    float* loss;             // [samples], written; nullptr: not wanted
    ImageView error;         // written where present
    ImageView slope;         // written where present
};

// σ n = value / c_in - y as if in one rounding.
struct NoiseReader {
    float factor, rest;  // 1/c_in and what of it is lost in float

    EDM_FAST_HOST_DEVICE explicit NoiseReader(float c_in)
        : factor(1.0f / c_in), rest(fmaf(-factor, c_in, 1.0f) * factor) {}

    EDM_FAST_HOST_DEVICE float operator()(float value, float y) const {
        return fmaf(value, rest, fmaf(value, factor, -y));
    }
};

// Whether the sample's σ n is taken from net_input. Rows of the caller's may have a c_in that no input can be divided
// by.
EDM_FAST_HOST_DEVICE bool noise_is_readable(const DenoisingLossArgs& args, int64_t sample) {
    const float* row = args.rows + sample * kLevelSize;
    return args.noise.data == nullptr && args.net_input.data != nullptr && row[kSigma] >= kLeastReadableSigma &&
           row[kInputScale] > 1e-30f && row[kInputScale] < 1e30f;
}

namespace cpu {
void denoising_loss(const DenoisingLossArgs& args, int threads);
}  // namespace cpu
namespace cuda {
void denoising_loss(const DenoisingLossArgs& args, int device, void* stream);
}  // namespace cuda

}  // namespace edm_fast
