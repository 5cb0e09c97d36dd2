// The kernels of group_norm_silu_grad. With d = x - center, v = d · gain + offset (see ChannelMap), and dy the gradient
// of y, gathered by the transposed filter:
//
//   dv = dy · silu'(v)
//   dh = dv · gain - rstd · mean(dv · w) - d · rstd² · mean(dv · d · w · rstd)          w = weight · (1 + scale)
//
// with means over the pixels and channels of a group. The first kernel sums dv, dv · d and d for each channel over
// chunks of pixels; every other gradient follows from these. The second joins them and makes the gradients. Bound by
// bytes.
#pragma once

#include "fir.cuh"
#include "group_norm_silu.cuh"
#include "silu.cuh"

namespace edm_fast::cuda {

// Few, since a thread needs many registers: the sums or the maps of its whole pack.
constexpr int kGradThreads = 128;
constexpr int kGradPacksPerThread = 8;
constexpr int64_t kMaxGradChunks = 32;
constexpr int kGradBatch = 2;

// What is summed, in this order.
constexpr int kGradSums = 3;

// The sums of each chunk: [N, chunks, C, kGradSums].
struct ChunkSums {
    float* data;
    int64_t channels, chunks;

    __device__ __forceinline__ float* at(int64_t sample, int64_t channel, int64_t chunk) const {
        return data + ((sample * chunks + chunk) * channels + channel) * kGradSums;
    }
};

__device__ __forceinline__ ChannelMap saved_map(const GroupNormSiluArgs& args, int64_t sample, int64_t channel,
                                                int64_t width) {
    const int64_t group = sample * args.groups + quotient(channel, width);
    return channel_map(args, sample, channel, args.mean[group], args.rstd[group]);
}

// The gradient of y, or of x through `plain`, at one pixel, from that of the resampled images.
template <class T, bool kAligned, bool kResampled>
class GradInput {
  public:
    __device__ __forceinline__ GradInput(const void* images, const Fir& fir, int64_t sample, int64_t pixels,
                                         int64_t channels, int64_t channel, int count)
        : fir_(fir), channels_(channels), count_(count) {
        const int64_t in_pixels = kResampled ? int64_t(fir.height) * fir.width : pixels;
        images_ = images == nullptr ? nullptr : static_cast<const T*>(images) + sample * in_pixels * channels + channel;
    }

    __device__ __forceinline__ bool exists() const { return images_ != nullptr; }

    __device__ __forceinline__ void load(int64_t pixel, float (&values)[kPack<T>]) const {
        if constexpr (kResampled) {
            gather(fir_, pixel, values, [&](int64_t neighbour, float (&part)[kPack<T>]) { plain(neighbour, part); });
        } else {
            plain(pixel, values);
        }
    }

  private:
    __device__ __forceinline__ void plain(int64_t pixel, float (&values)[kPack<T>]) const {
        unpack<T>(load_raw<T, kAligned>(images_ + pixel * channels_, count_), values);
    }

    const Fir& fir_;
    const T* images_;
    int64_t channels_;
    int count_;
};

// x and dy become d and dv.
template <class T>
__device__ __forceinline__ void differentiate(const PackMap<T>& map, bool with_silu, float (&x)[kPack<T>],
                                              float (&dy)[kPack<T>]) {
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        x[i] -= map.center[i];
        if (with_silu) dy[i] *= silu_derivative<T>(x[i] * map.gain[i] + map.offset[i]);
    }
}

template <class T, bool kAligned, bool kResampled>
__global__ void __launch_bounds__(kGradThreads, 3)
    group_norm_silu_grad_sums(const __grid_constant__ GroupNormSiluGradArgs args, const __grid_constant__ Tiling tiling,
                              const __grid_constant__ Fir fir, const __grid_constant__ ChunkSums output) {
    float* const scratch = simt::dynamic_shared<float>();
    const int64_t width = tiling.channels / args.forward.groups;
    for (int64_t index = blockIdx.x; index < tiling.tiles; index += gridDim.x) {
        const Tile tile = tile_at(tiling, index);
        const Place<T> place(tiling, tile);
        float sums[kGradSums][kPack<T>] = {};
        if (place.count > 0) {
            const int64_t channel = tile.first_channel + place.offset;
            PackMap<T> map;
            map.fill(place.count, [&](int i) { return saved_map(args.forward, tile.sample, channel + i, width); });
            const NormInput<T, kAligned> input(args.forward, tile.sample, channel, place.count);
            const GradInput<T, kAligned, kResampled> grad(args.grad_out, fir, tile.sample, tiling.pixels,
                                                          tiling.channels, channel, place.count);
            for (int64_t first = tile.first_pixel + place.row; first < tile.end_pixel;
                 first += kGradBatch * place.rows) {
                input.template batch<kGradBatch>(first, place.rows, tile.end_pixel,
                                                 [&](int, int64_t pixel, const uint4& raw) {
                                                     float d[kPack<T>], dv[kPack<T>];
                                                     unpack<T>(raw, d);
                                                     grad.load(pixel, dv);
                                                     differentiate<T>(map, args.forward.silu, d, dv);
#pragma unroll
                                                     for (int i = 0; i < kPack<T>; ++i) {
                                                         sums[0][i] += dv[i];
                                                         sums[1][i] += dv[i] * d[i];
                                                         sums[2][i] += d[i];
                                                     }
                                                 });
            }
        }
        const int64_t chunk = quotient(tile.first_pixel, tiling.chunk_pixels);
        float* const here = output.at(tile.sample, tile.first_channel, chunk);
        reduce_sums<T, kGradSums>(sums, tiling, tile, place, tiling.slab_channels, scratch,
                                  [&](int channel, const float (&total)[kGradSums]) {
#pragma unroll
                                      for (int i = 0; i < kGradSums; ++i) here[channel * kGradSums + i] = total[i];
                                  });
        __syncthreads();
    }
}

// A group's two means, as its channels' gradients take them: rstd · mean(dv · w) and rstd² · mean(dv · d · w · rstd).
struct GroupMeans {
    float *of_grad, *of_product;
};

// For all threads of the block; a warp takes a group at a time.
__device__ __forceinline__ void group_means(const GroupNormSiluArgs& args, const Tiling& tiling, const ChunkSums& sums,
                                            int64_t sample, const GroupRange& groups, const GroupMeans& means) {
    const int64_t width = tiling.channels / args.groups;
    const int lane = int(threadIdx.x) % kLanes, warps = int(blockDim.x) / kLanes;
    for (int group = int(threadIdx.x) / kLanes; group < groups.count; group += warps) {
        float of_grad = 0.0f, of_product = 0.0f;
        for (int64_t i = lane; i < width * sums.chunks; i += kLanes) {
            const int64_t chunk = quotient(i, width);
            const int64_t channel = (groups.first + group) * width + i - chunk * width;
            float weight = args.weight[channel];
            if (args.scale != nullptr) weight *= 1.0f + args.scale[sample * args.modulation_stride + channel];
            const float* const part = sums.at(sample, channel, chunk);
            of_grad += weight * part[0];
            of_product += weight * part[1];
        }
        of_grad = warp_sum(of_grad);
        of_product = warp_sum(of_product);
        if (lane == 0) {
            const float rstd = args.rstd[sample * args.groups + groups.first + group];
            const float share = __fdividef(rstd, float(width) * float(tiling.pixels));
            means.of_grad[group] = of_grad * share;
            means.of_product[group] = of_product * share * rstd * rstd;
        }
    }
}

// The gradients that are rows: one thread's channel of one sample.
__device__ __forceinline__ void write_rows(const GroupNormSiluGradArgs& args, const Tiling& tiling,
                                           const ChunkSums& sums, int64_t sample, int64_t channel, float of_grad,
                                           float of_product) {
    const GroupNormSiluArgs& forward = args.forward;
    float total[kGradSums] = {};
    for (int64_t chunk = 0; chunk < sums.chunks; ++chunk) {
#pragma unroll
        for (int i = 0; i < kGradSums; ++i) total[i] += sums.at(sample, channel, chunk)[i];
    }
    const float rstd = forward.rstd[sample * forward.groups + quotient(channel, tiling.channels / forward.groups)];
    const float weight = forward.weight[channel];
    const float factor =
        forward.scale != nullptr ? 1.0f + forward.scale[sample * forward.modulation_stride + channel] : 1.0f;
    const float normalized = total[1] * rstd;  // the sum of dv times the normalised h
    const int64_t place = sample * tiling.channels + channel;
    if (args.grad_pre_bias != nullptr) {
        args.grad_pre_bias[place] =
            total[0] * rstd * weight * factor - float(tiling.pixels) * of_grad - total[2] * of_product;
    }
    if (args.grad_weight != nullptr) args.grad_weight[place] = factor * normalized;
    if (args.grad_bias != nullptr) args.grad_bias[place] = factor * total[0];
    if (args.grad_scale != nullptr) args.grad_scale[place] = weight * normalized + forward.bias[channel] * total[0];
    if (args.grad_shift != nullptr) args.grad_shift[place] = total[0];
}

template <class T, bool kAligned, bool kResampled>
__global__ void __launch_bounds__(kGradThreads, 3)
    group_norm_silu_grad_apply(const __grid_constant__ GroupNormSiluGradArgs args,
                               const __grid_constant__ Tiling tiling, const __grid_constant__ Fir fir,
                               const __grid_constant__ ChunkSums sums) {
    constexpr int kChannels = kPack<T>;
    float* const shared = simt::dynamic_shared<float>();
    const GroupMeans means{shared, shared + tiling.slab_channels};
    const int64_t width = tiling.channels / args.forward.groups;
    const bool wants_images = args.grad_source[0] != nullptr || args.grad_source[1] != nullptr;
    const float scale = args.forward.addend != nullptr ? args.forward.sum_scale : 1.0f;
    for (int64_t index = blockIdx.x; index < tiling.tiles; index += gridDim.x) {
        const Tile tile = tile_at(tiling, index);
        const Place<T> place(tiling, tile);
        const int64_t channel = tile.first_channel + place.offset;
        const GroupRange groups(width, tile);
        group_means(args.forward, tiling, sums, tile.sample, groups, means);
        __syncthreads();
        for (int i = int(threadIdx.x); tile.first_pixel == 0 && i < tile.channels; i += int(blockDim.x)) {
            const int group = int(quotient(tile.first_channel + i, width) - groups.first);
            write_rows(args, tiling, sums, tile.sample, tile.first_channel + i, means.of_grad[group],
                       means.of_product[group]);
        }
        if (wants_images && place.count > 0) {
            PackMap<T> map;
            map.fill(place.count, [&](int i) { return saved_map(args.forward, tile.sample, channel + i, width); });
            float of_grad[kChannels], of_product[kChannels];
#pragma unroll
            for (int i = 0; i < kChannels; ++i) {
                const int group = i < place.count ? int(quotient(channel + i, width) - groups.first) : 0;
                of_grad[i] = means.of_grad[group];
                of_product[i] = means.of_product[group];
            }
            const NormInput<T, kAligned> input(args.forward, tile.sample, channel, place.count);
            const GradInput<T, kAligned, kResampled> grad_out(args.grad_out, fir, tile.sample, tiling.pixels,
                                                              tiling.channels, channel, place.count);
            const GradInput<T, kAligned, kResampled> grad_plain(args.grad_plain, fir, tile.sample, tiling.pixels,
                                                                tiling.channels, channel, place.count);
            const GradInput<T, kAligned, false> grad_sum(args.grad_sum, fir, tile.sample, tiling.pixels,
                                                         tiling.channels, channel, place.count);
            const SplitPack<T, kAligned> output(args.grad_source, args.forward.channels, args.forward.channels,
                                                tile.sample * tiling.pixels, channel, place.count);
            for (int64_t pixel = tile.first_pixel + place.row; pixel < tile.end_pixel; pixel += place.rows) {
                float d[kChannels], grad[kChannels], other[kChannels];
                unpack<T>(input.load(pixel), d);
                grad_out.load(pixel, grad);
                differentiate<T>(map, args.forward.silu, d, grad);
#pragma unroll
                for (int i = 0; i < kChannels; ++i) grad[i] = grad[i] * map.gain[i] - of_grad[i] - d[i] * of_product[i];
                if (grad_plain.exists()) {
                    grad_plain.load(pixel, other);
#pragma unroll
                    for (int i = 0; i < kChannels; ++i) grad[i] += other[i];
                }
                if (grad_sum.exists()) {
                    grad_sum.load(pixel, other);
#pragma unroll
                    for (int i = 0; i < kChannels; ++i) grad[i] += other[i];
                }
#pragma unroll
                for (int i = 0; i < kChannels; ++i) grad[i] *= scale;
                output.store(pixel, pack<T>(grad));
            }
        }
        __syncthreads();
    }
}

}  // namespace edm_fast::cuda
