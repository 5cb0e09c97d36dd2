// A strided view of images [N, C, P], P = height · width pixels in row order: contiguous, channels-last and sliced
// tensors are all of this form. Element i of a sample is (channel i / P, pixel i % P), whatever the layout.
#pragma once

#include <cstdint>

#include "edm_fast/dtypes.h"

namespace edm_fast {

struct ImageView {
    void* data = nullptr;                                             // nullptr: there is no such tensor
    int64_t sample_stride = 0, channel_stride = 0, pixel_stride = 0;  // in elements
    DType dtype = kFloat32;
};

}  // namespace edm_fast
