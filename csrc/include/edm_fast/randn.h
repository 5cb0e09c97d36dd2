// randn: out[n, c, p] = normal(seeds[n], draw, element c · P + p), standard normal numbers (see normal.h).
#pragma once

#include <cstdint>

#include "edm_fast/image_view.h"

namespace edm_fast {

struct RandnArgs {
    int64_t samples, channels, pixels;
    const int64_t* seeds;  // [samples]; the 64 bits are the key
    uint32_t draw, domain;
    ImageView out;  // [samples, channels, pixels], written
};

namespace cpu {
void randn(const RandnArgs& args, int threads);
}
namespace cuda {
void randn(const RandnArgs& args, int device, void* stream);
}

}  // namespace edm_fast
