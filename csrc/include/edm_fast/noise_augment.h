// noise_augment: the noisy input of a training step, in one pass over the images,
//
//   net_input = c_in (y + σ n),   n = normal(seed, draw, element) or given
//
// and per sample a row of numbers (see noise_level.h), from a σ that is drawn, or given, or with the row given. The
// noise is not stored: denoising_loss makes it again.
#pragma once

#include <cstdint>

#include "edm_fast/image_view.h"
#include "edm_fast/noise_level.h"

namespace edm_fast {

struct NoiseAugmentArgs {
    int64_t samples, channels, pixels;
    LevelRule rule;
    uint32_t draw;
    const int64_t* seeds;  // [samples], or nullptr if nothing is drawn
    const float* sigma;    // [samples], read for kSigmaGiven
    float* rows;           // [samples, kLevelSize], written; read for kRowsGiven
    ImageView images;      // y
    ImageView noise;       // n, if the caller brings it
    ImageView net_input;   // written
};

namespace cpu {
void noise_augment(const NoiseAugmentArgs& args, int threads);
}
namespace cuda {
void noise_augment(const NoiseAugmentArgs& args, int device, void* stream);
}

}  // namespace edm_fast
