// What the kernels of group_norm_silu share: reading x, the statistics of groups, and the affine map of each channel.
#pragma once

#include <cstdint>
#include <type_traits>

#include "edm_fast/group_norm_silu.h"
#include "packed.cuh"
#include "reduce.cuh"
#include "simt.h"
#include "tile.cuh"

namespace edm_fast::cuda {

// One thread's pack of channels in images that are the concatenation of two, the second of which may have no channels.
// Element is const for images that are read.
template <class Element, bool kAligned>
class SplitPack {
    using T = std::remove_const_t<Element>;
    using Memory = std::conditional_t<std::is_const_v<Element>, const void, void>;

  public:
    __device__ __forceinline__ SplitPack(Memory* const (&images)[2], const int64_t (&channels)[2],
                                         const int64_t (&strides)[2], int64_t first_pixel, int64_t channel, int count) {
        const bool second = channel >= channels[0];
        const int64_t inside = second ? channel - channels[0] : channel;
        data_ = static_cast<Element*>(images[second]);
        stride_ = strides[second];
        if (data_ != nullptr) data_ += first_pixel * stride_ + inside;
        count_ = count;
        if constexpr (!kAligned) {
            // The pack may straddle the seam.
            count_ = int(min(channels[second] - inside, int64_t(count)));
            rest_ = count - count_;
            rest_stride_ = strides[1];
            rest_data_ = static_cast<Element*>(images[1]);
            if (rest_data_ != nullptr) rest_data_ += first_pixel * rest_stride_;
        }
    }

    __device__ __forceinline__ uint4 load(int64_t pixel) const {
        if constexpr (kAligned) {
            return load_raw<T, true>(data_ + pixel * stride_, count_);
        } else {
            uint4 raw = make_uint4(0, 0, 0, 0);
            const Element* const here = data_ + pixel * stride_;
            const Element* const there = rest_data_ + pixel * rest_stride_;
#pragma unroll
            for (int i = 0; i < kPack<T>; ++i) {
                if (i < count_ + rest_) set_element(raw, i, i < count_ ? here[i] : there[i - count_]);
            }
            return raw;
        }
    }

    __device__ __forceinline__ const Element* address(int64_t pixel) const { return data_ + pixel * stride_; }

    // Images that are nullptr are left out.
    __device__ __forceinline__ void store(int64_t pixel, const uint4& raw) const {
        if constexpr (kAligned) {
            if (data_ != nullptr) store_raw<T, true>(data_ + pixel * stride_, count_, raw);
        } else {
            Element* const here = data_ + pixel * stride_;
            Element* const there = rest_data_ + pixel * rest_stride_;
#pragma unroll
            for (int i = 0; i < kPack<T>; ++i) {
                if (i < count_) {
                    if (data_ != nullptr) here[i] = element_of<T>(raw, i);
                } else if (i < count_ + rest_) {
                    if (rest_data_ != nullptr) there[i - count_] = element_of<T>(raw, i);
                }
            }
        }
    }

  private:
    Element* data_;
    int64_t stride_;
    int count_;
    Element* rest_data_ = nullptr;
    int64_t rest_stride_ = 0;
    int rest_ = 0;
};

// One thread's pack of x, rounded to its storage as `sum` has it.
template <class T, bool kAligned>
class NormInput {
  public:
    __device__ __forceinline__ NormInput(const GroupNormSiluArgs& args, int64_t sample, int64_t channel, int count)
        : source_(args.source, args.channels, args.source_stride, sample * args.height * args.width, channel, count),
          channels_(args.channels[0]),
          scale_(args.sum_scale),
          count_(count) {
        const int64_t dense = sample * args.height * args.width * channels_ + channel;
        addend_ = args.addend != nullptr ? static_cast<const T*>(args.addend) + dense : nullptr;
    }

    // Loads kBatch pixels, `step` apart and before `end`, and calls use(index, pixel, raw) for each. All loads are
    // under way before the first is used.
    template <int kBatch, class Use>
    __device__ __forceinline__ void batch(int64_t first, int64_t step, int64_t end, const Use& use) const {
        uint4 raw[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            if (first + i * step < end) raw[i] = source_.load(first + i * step);
        }
        if (addend_ != nullptr) {
            uint4 addend[kBatch];
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                if (first + i * step < end) {
                    addend[i] = load_raw<T, kAligned>(addend_ + (first + i * step) * channels_, count_);
                }
            }
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                if (first + i * step < end) raw[i] = added(raw[i], addend[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            if (first + i * step < end) use(i, first + i * step, raw[i]);
        }
    }

    // Where the pixel lies, if x is aligned and nothing is added to it.
    __device__ __forceinline__ const T* address(int64_t pixel) const { return source_.address(pixel); }

    __device__ __forceinline__ uint4 load(int64_t pixel) const {
        const uint4 raw = source_.load(pixel);
        if (addend_ == nullptr) return raw;
        return added(raw, load_raw<T, kAligned>(addend_ + pixel * channels_, count_));
    }

  private:
    __device__ __forceinline__ uint4 added(const uint4& a, const uint4& b) const {
        float sum[kPack<T>], other[kPack<T>];
        unpack<T>(a, sum);
        unpack<T>(b, other);
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) sum[i] = (sum[i] + other[i]) * scale_;
        return pack<T>(sum);
    }

    SplitPack<const T, kAligned> source_;
    const T* addend_;
    int64_t channels_;
    float scale_;
    int count_;
};

__device__ __forceinline__ int64_t channels_of(const GroupNormSiluArgs& args) {
    return args.channels[0] + args.channels[1];
}

__device__ __forceinline__ float pre_bias_of(const GroupNormSiluArgs& args, int64_t sample, int64_t channel) {
    return args.pre_bias != nullptr ? args.pre_bias[sample * args.pre_bias_stride + channel] : 0.0f;
}

// v = (x - center) · gain + offset. The mean is taken off first, since one that is large against the deviation would
// cancel in x · gain + offset.
struct ChannelMap {
    float center, gain, offset;
};

__device__ __forceinline__ ChannelMap channel_map(const GroupNormSiluArgs& args, int64_t sample, int64_t channel,
                                                  float mean, float rstd) {
    ChannelMap map{mean - pre_bias_of(args, sample, channel), rstd * args.weight[channel], args.bias[channel]};
    if (args.scale != nullptr) {
        const int64_t place = sample * args.modulation_stride + channel;
        const float factor = 1.0f + args.scale[place];
        map.gain *= factor;
        map.offset = map.offset * factor + args.shift[place];
    }
    return map;
}

// The groups that a slab of channels touches.
struct GroupRange {
    int64_t first;
    int count;

    __device__ __forceinline__ GroupRange(int64_t width, const Tile& tile) {
        first = quotient(tile.first_channel, width);
        count = int(quotient(tile.first_channel + tile.channels - 1, width) - first) + 1;
    }
};

// For all threads of the block; a warp takes a group at a time. moments_of(group, i) are those of h for the i-th of
// `parts` parts of a group; mean and rstd are written for `groups` groups.
template <class MomentsOf>
__device__ __forceinline__ void group_statistics(const GroupNormSiluArgs& args, int groups, int64_t parts,
                                                 const MomentsOf& moments_of, float* mean, float* rstd) {
    const int lane = int(threadIdx.x) % kLanes, warps = int(blockDim.x) / kLanes;
#pragma unroll 1
    for (int group = int(threadIdx.x) / kLanes; group < groups; group += warps) {
        Moments total{0.0f, 0.0f, 0.0f};
#pragma unroll 1
        for (int64_t i = lane; i < parts; i += kLanes) total = joined(total, moments_of(group, i));
        total = warp_joined(total);
        if (lane == 0) {
            mean[group] = total.mean;
            rstd[group] = rsqrtf(__fdividef(total.m2, total.count) + args.eps);
        }
    }
}

// The maps of a thread's channels, in registers.
template <class T>
struct PackMap {
    float center[kPack<T>], gain[kPack<T>], offset[kPack<T>];

    template <class MapOf>
    __device__ __forceinline__ void fill(int count, const MapOf& map_of) {
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) {
            const ChannelMap map = i < count ? map_of(i) : ChannelMap{0.0f, 0.0f, 0.0f};
            center[i] = map.center;
            gain[i] = map.gain;
            offset[i] = map.offset;
        }
    }

    // x becomes v.
    __device__ __forceinline__ void apply(float (&values)[kPack<T>]) const {
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) values[i] = (values[i] - center[i]) * gain[i] + offset[i];
    }
};

}  // namespace edm_fast::cuda
