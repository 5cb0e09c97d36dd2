// A strided view of images [N, C, P], P = height · width pixels in row order: contiguous, channels-last and sliced
// tensors are all of this form. Element i of a sample is (channel i / P, pixel i % P), whatever the layout.
#pragma once

#include <cstdint>

#include "edm_fast/dtypes.h"
#include "edm_fast/host_device.h"

namespace edm_fast {

struct ImageView {
    void* data = nullptr;                                             // nullptr: there is no such tensor
    int64_t sample_stride = 0, channel_stride = 0, pixel_stride = 0;  // in elements
    DType dtype = kFloat32;
};

// How many planes a sample is taken as: RGB images by their channels, all others as one. By shape and not by layout, so
// that sums have one order; noise comes four elements at a time, so planes start at a multiple of four.
EDM_FAST_HOST_DEVICE int planes_of(int64_t channels, int64_t pixels) {
    return channels == 3 && pixels % 4 == 0 ? 3 : 1;
}

// Whether the channels of a pixel lie beside each other and the pixels behind each other, for images of three channels.
EDM_FAST_HOST_DEVICE bool is_interleaved_rgb(const ImageView& view) {
    return view.data != nullptr && view.pixel_stride == 3 && view.channel_stride == 1;
}

}  // namespace edm_fast
