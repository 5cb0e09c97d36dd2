// augment: what the augmentation pipe does to images [N, C, H, W], each with parameters of its own: moves of whole
// pixels, a warp, and a change of colours, one after the other.
//
//   blit      x is flipped and transposed; out[row, column] = x[row + up, column - right], where x goes on by
//   reflection
//             about its first and last pixels (period 2H - 2, 2W - 2).
//   geometry  along each axis, with the taps h of sym6, for the whole numbers j of a grid twice as fine:
//               u[j] = sum_i h[j - 2i + 5] · x[i]                       going up
//               v[j] = u[A · (j - c) + 2b + c],  c = (W - 1, H - 1)     bilinear
//               out[i] = sum_k h[k] · v[2i + k - 5]                     going down
//             for the matrix [A b] on the scale of pixels about the image's centre. In u, x is the image with its
//             reflection on all sides, W - 1 and H - 1 pixels wide, and 0 beyond; u is 0 outside of these pixels'
//             elements 2i and 2i + 1.
//   colour    out = M · [r, g, b, 1]; one channel is grey, and gets the mean of the three rows for r = g = b.
//
// The taps are orthogonal to their shifts by two, so that A = 1, b = 0 gives x back wherever the reflection is at least
// 3 pixels wide; the kernels then skip the filters.
#pragma once

#include <cstdint>

#include "edm_fast/host_device.h"
#include "edm_fast/image_view.h"

namespace edm_fast {

constexpr int kSym6Taps = 12;
// Element j of the fine grid has the tap j - 2i + kSym6Before of pixel i.
constexpr int kSym6Before = 5;
constexpr float kSym6[kSym6Taps] = {0.015404109327027373f, 0.0034907120842174702f, -0.11799011114819057f,
                                    -0.048311742585633f,   0.4910559419267466f,    0.787641141030194f,
                                    0.3379294217276218f,   -0.07263752278646252f,  -0.021060292512300564f,
                                    0.04472490177066578f,  0.0017677118642428036f, -0.007800708325034148f};

// What A = 1, b = 0 needs of the smaller extent to be the identity.
constexpr int64_t kSym6IdentityExtent = 4;

struct AugmentArgs {
    int64_t samples, channels, height, width;
    ImageView images, out;  // float32 [N, C, H · W], any strides
    const int32_t* blit;    // [N, 5] flip x, flip y, transpose (the last only if H = W), right, up; or nullptr
    const float* geometry;  // [N, 2, 3] A and b; or nullptr
    const float* colour;    // [N, 3, 4] M, and then C is 1 or 3; or nullptr
};

// The index in [0, extent) that an index beyond stands for.
EDM_FAST_HOST_DEVICE int reflected(int index, int extent) {
    if (index >= 0 && index < extent) return index;
    if (extent == 1) return 0;
    const int period = 2 * extent - 2;
    const int rest = index % period;
    const int within = rest < 0 ? rest + period : rest;
    return within < extent ? within : period - within;
}

// The pixel that a blit moves to (row, column) is number row_part(row) + column_part(column) of the H · W.
struct Blit {
    int height, width;
    bool flip_x, flip_y, transpose;
    int right, up;

    EDM_FAST_HOST_DEVICE Blit(const AugmentArgs& args, int64_t sample)
        : height(int(args.height)), width(int(args.width)), flip_x(), flip_y(), transpose(), right(), up() {
        if (args.blit == nullptr) return;
        const int32_t* const row = args.blit + sample * 5;
        flip_x = row[0] != 0;
        flip_y = row[1] != 0;
        transpose = row[2] != 0 && height == width;  // else it would read beside the image
        // Whole periods are left out, so that no sum passes 2^31.
        right = width > 1 ? row[3] % (2 * width - 2) : 0;
        up = height > 1 ? row[4] % (2 * height - 2) : 0;
    }
    EDM_FAST_HOST_DEVICE int64_t row_part(int row) const {
        const int from = reflected(row + up, height);
        return transpose ? source_column(from) : source_row(from);
    }
    EDM_FAST_HOST_DEVICE int64_t column_part(int column) const {
        const int from = reflected(column - right, width);
        return transpose ? source_row(from) : source_column(from);
    }

  private:
    EDM_FAST_HOST_DEVICE int64_t source_row(int row) const { return int64_t(flip_y ? height - 1 - row : row) * width; }
    EDM_FAST_HOST_DEVICE int64_t source_column(int column) const { return flip_x ? width - 1 - column : column; }
};

// The warp of a sample, or that there is none.
struct Warp {
    bool identity;
    float a[2][2], b[2];

    EDM_FAST_HOST_DEVICE Warp(const AugmentArgs& args, int64_t sample) : identity(true), a(), b() {
        if (args.geometry == nullptr) return;
        const float* const matrix = args.geometry + sample * 6;
        for (int i = 0; i < 2; ++i) {
            a[i][0] = matrix[3 * i];
            a[i][1] = matrix[3 * i + 1];
            b[i] = matrix[3 * i + 2];
        }
        identity = a[0][0] == 1.0f && a[1][1] == 1.0f && a[0][1] == 0.0f && a[1][0] == 0.0f && b[0] == 0.0f &&
                   b[1] == 0.0f && args.height >= kSym6IdentityExtent && args.width >= kSym6IdentityExtent;
    }
};

// The colours of a sample: value[r] = sum_c gain(r, c) · value[c] + offset(r), for the C channels.
struct Colour {
    const float* matrix;  // nullptr: they stay
    bool grey;

    EDM_FAST_HOST_DEVICE Colour(const AugmentArgs& args, int64_t sample)
        : matrix(args.colour == nullptr ? nullptr : args.colour + sample * 12), grey(args.channels == 1) {}
    EDM_FAST_HOST_DEVICE float gain(int r, int c) const {
        if (!grey) return matrix[4 * r + c];
        const float sum = (row_sum(0) + row_sum(1)) + row_sum(2);
        return r == 0 && c == 0 ? sum / 3.0f : 0.0f;
    }
    EDM_FAST_HOST_DEVICE float offset(int r) const {
        if (!grey) return matrix[4 * r + 3];
        return r == 0 ? ((matrix[3] + matrix[7]) + matrix[11]) / 3.0f : 0.0f;
    }

  private:
    EDM_FAST_HOST_DEVICE float row_sum(int r) const { return (matrix[4 * r] + matrix[4 * r + 1]) + matrix[4 * r + 2]; }
};

namespace cpu {
void augment(const AugmentArgs& args, int threads);
}
namespace cuda {
void augment(const AugmentArgs& args, int device, void* stream);
}

}  // namespace edm_fast
