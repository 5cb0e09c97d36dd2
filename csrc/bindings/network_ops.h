// The ops of the U-Nets for any backend; see ops.h. Absent tensors are pointer 0.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "edm_fast/attention.h"
#include "edm_fast/conv2d.h"
#include "edm_fast/conv2d_split.h"
#include "edm_fast/group_norm_silu.h"
#include "edm_fast/resample.h"
#include "edm_fast/residual.h"
#include "ops.h"

namespace edm_fast::bindings {

using Address = uintptr_t;
using Rows = std::tuple<Address, int64_t>;                // float32 rows: pointer, elements from a sample to the next
using Source = std::tuple<Address, int64_t, int64_t>;     // pointer, channels, elements from a pixel to the next
using Filter = std::tuple<int, int, std::vector<float>>;  // direction, padding, taps
using Tokens = std::tuple<Address, int64_t, int64_t, int64_t, int64_t>;  // pointer; sample, token, head, channel stride

inline Resampling resampling(const Filter& filter) {
    const auto& [direction, padding, taps] = filter;
    Resampling result{direction, int(taps.size()), padding, {}};
    if (taps.size() > kMaxTaps) throw std::invalid_argument("taps: at most 8 are supported");
    std::copy(taps.begin(), taps.end(), result.tap);
    return result;
}

inline TokenView token_view(const Tokens& view) {
    const auto& [address, sample, token, head, channel] = view;
    return {pointer<void>(address), sample, token, head, channel};
}

// shape: samples, height, width. norm: weight, bias, groups, eps, silu. outputs: out, plain, mean, rstd.
using Norm = std::tuple<Address, Address, int64_t, float, bool>;
using Quad = std::tuple<Address, Address, Address, Address>;
using Sum = std::tuple<Address, float, Address>;  // addend, sum_scale, sum
using Pair = std::tuple<Address, Address>;
using ChunkMoments = std::tuple<Address, Address, int64_t>;  // of both sources, pixels of a chunk

inline GroupNormSiluArgs group_norm_silu_args(Shape shape, int32_t dtype, Source first, Source second, Sum sum,
                                              ChunkMoments moments, Norm norm, Rows pre_bias, Rows scale, Rows shift,
                                              const Filter& filter, Quad outputs) {
    GroupNormSiluArgs args{};
    std::tie(args.samples, args.height, args.width) = shape;
    args.dtype = DType(dtype);
    const Source sources[2] = {first, second};
    for (int i = 0; i < 2; ++i) {
        args.source[i] = pointer<const void>(std::get<0>(sources[i]));
        args.channels[i] = std::get<1>(sources[i]);
        args.source_stride[i] = std::get<2>(sources[i]);
    }
    args.addend = pointer<const void>(std::get<0>(sum));
    args.sum_scale = std::get<1>(sum);
    args.sum = pointer<void>(std::get<2>(sum));
    args.moments[0] = pointer<const float>(std::get<0>(moments));
    args.moments[1] = pointer<const float>(std::get<1>(moments));
    args.moments_chunk = std::get<2>(moments);
    args.weight = pointer<const float>(std::get<0>(norm));
    args.bias = pointer<const float>(std::get<1>(norm));
    args.groups = std::get<2>(norm);
    args.eps = std::get<3>(norm);
    args.silu = std::get<4>(norm);
    args.pre_bias = pointer<const float>(std::get<0>(pre_bias));
    args.pre_bias_stride = std::get<1>(pre_bias);
    args.scale = pointer<const float>(std::get<0>(scale));
    args.shift = pointer<const float>(std::get<0>(shift));
    args.modulation_stride = std::get<1>(scale);
    args.resampling = resampling(filter);
    args.out = pointer<void>(std::get<0>(outputs));
    args.plain = pointer<void>(std::get<1>(outputs));
    args.mean = pointer<float>(std::get<2>(outputs));
    args.rstd = pointer<float>(std::get<3>(outputs));
    return args;
}

template <class... Where>
void def_group_norm_silu(py::module_& module, void (*op)(const GroupNormSiluArgs&, Where...)) {
    module.def("group_norm_silu",
               [op](Shape shape, int32_t dtype, Source first, Source second, Sum sum, ChunkMoments moments, Norm norm,
                    Rows pre_bias, Rows scale, Rows shift, const Filter& filter, Quad outputs, Where... where) {
                   const GroupNormSiluArgs args = group_norm_silu_args(shape, dtype, first, second, sum, moments, norm,
                                                                       pre_bias, scale, shift, filter, outputs);
                   py::gil_scoped_release release;
                   op(args, where...);
               });
}

// grads_in: of out, plain, sum. grads_out: of source 0, source 1, pre_bias, weight, bias, scale, shift.
template <class... Where>
void def_group_norm_silu_grad(py::module_& module, void (*op)(const GroupNormSiluGradArgs&, Where...)) {
    using In = std::tuple<Address, Address, Address>;
    using Out = std::tuple<Address, Address, Address, Address, Address, Address, Address>;
    module.def("group_norm_silu_grad",
               [op](Shape shape, int32_t dtype, Source first, Source second, Sum sum, ChunkMoments moments, Norm norm,
                    Rows pre_bias, Rows scale, Rows shift, const Filter& filter, Quad outputs, In grads_in,
                    Out grads_out, Where... where) {
                   GroupNormSiluGradArgs args{};
                   args.forward = group_norm_silu_args(shape, dtype, first, second, sum, moments, norm, pre_bias, scale,
                                                       shift, filter, outputs);
                   args.grad_out = pointer<const void>(std::get<0>(grads_in));
                   args.grad_plain = pointer<const void>(std::get<1>(grads_in));
                   args.grad_sum = pointer<const void>(std::get<2>(grads_in));
                   args.grad_source[0] = pointer<void>(std::get<0>(grads_out));
                   args.grad_source[1] = pointer<void>(std::get<1>(grads_out));
                   args.grad_pre_bias = pointer<float>(std::get<2>(grads_out));
                   args.grad_weight = pointer<float>(std::get<3>(grads_out));
                   args.grad_bias = pointer<float>(std::get<4>(grads_out));
                   args.grad_scale = pointer<float>(std::get<5>(grads_out));
                   args.grad_shift = pointer<float>(std::get<6>(grads_out));
                   py::gil_scoped_release release;
                   op(args, where...);
               });
}

// shape: samples, height, width.
template <class... Where>
void def_resample(py::module_& module, void (*op)(const ResampleArgs&, Where...)) {
    module.def("resample", [op](Shape shape, int64_t channels, int32_t dtype, const Filter& filter, Address x,
                                Address out, Where... where) {
        ResampleArgs args{};
        std::tie(args.samples, args.height, args.width) = shape;
        args.channels = channels;
        args.dtype = DType(dtype);
        args.resampling = resampling(filter);
        args.x = pointer<const void>(x);
        args.out = pointer<void>(out);
        py::gil_scoped_release release;
        op(args, where...);
    });
}

// shape: samples, pixels, channels.
template <class... Where>
void def_residual(py::module_& module, void (*op)(const ResidualArgs&, Where...)) {
    module.def("residual", [op](Shape shape, int32_t dtype, Address a, Address b, Address bias, float scale,
                                Address out, int64_t out_stride, Address moments, Where... where) {
        ResidualArgs args{};
        std::tie(args.samples, args.pixels, args.channels) = shape;
        args.dtype = DType(dtype);
        args.a = pointer<const void>(a);
        args.b = pointer<const void>(b);
        args.bias = pointer<const float>(bias);
        args.scale = scale;
        args.out = pointer<void>(out);
        args.out_stride = out_stride;
        args.moments = pointer<float>(moments);
        py::gil_scoped_release release;
        op(args, where...);
    });
}

// shape: samples, height, width of x. channels: of x and of out. scratch: partial, arrived.
template <class... Where>
void def_conv2d_split(py::module_& module, void (*op)(const Conv2dSplitArgs&, Where...)) {
    using Channels = std::tuple<int64_t, int64_t>;
    module.def("conv2d_split", [op](Shape shape, Channels channels, int32_t kernel, int32_t padding, int32_t dtype,
                                    Address x, Address weight, Address bias, Address residual, float scale, Address out,
                                    Address moments, Pair scratch, Where... where) {
        Conv2dSplitArgs args{};
        std::tie(args.samples, args.height, args.width) = shape;
        std::tie(args.in_channels, args.out_channels) = channels;
        args.kernel = kernel;
        args.padding = padding;
        args.dtype = DType(dtype);
        args.x = pointer<const void>(x);
        args.weight = pointer<const void>(weight);
        args.bias = pointer<const float>(bias);
        args.residual = pointer<const void>(residual);
        args.scale = scale;
        args.out = pointer<void>(out);
        args.moments = pointer<float>(moments);
        args.partial = pointer<float>(std::get<0>(scratch));
        args.arrived = pointer<uint32_t>(std::get<1>(scratch));
        py::gil_scoped_release release;
        op(args, where...);
    });
    module.def("conv2d_split_partial", &conv2d_split_partial);
}

using AttentionShape = std::tuple<int64_t, int64_t, int64_t, int64_t>;  // samples, heads, tokens, head_channels

inline AttentionArgs attention_args(AttentionShape shape, int32_t dtype, Tokens q, Tokens k, Tokens v, Tokens out,
                                    Address log_sum_exp) {
    AttentionArgs args{};
    std::tie(args.samples, args.heads, args.tokens, args.head_channels) = shape;
    args.dtype = DType(dtype);
    args.q = token_view(q);
    args.k = token_view(k);
    args.v = token_view(v);
    args.out = token_view(out);
    args.log_sum_exp = pointer<float>(log_sum_exp);
    return args;
}

template <class... Where>
void def_attention(py::module_& module, void (*op)(const AttentionArgs&, Where...)) {
    module.def("attention", [op](AttentionShape shape, int32_t dtype, Tokens q, Tokens k, Tokens v, Tokens out,
                                 Address log_sum_exp, Where... where) {
        const AttentionArgs args = attention_args(shape, dtype, q, k, v, out, log_sum_exp);
        py::gil_scoped_release release;
        op(args, where...);
    });
}

template <class... Where>
void def_attention_grad(py::module_& module, void (*op)(const AttentionGradArgs&, Where...)) {
    module.def("attention_grad",
               [op](AttentionShape shape, int32_t dtype, Tokens q, Tokens k, Tokens v, Tokens out, Address log_sum_exp,
                    Tokens grad_out, Tokens grad_q, Tokens grad_k, Tokens grad_v, Where... where) {
                   AttentionGradArgs args{};
                   args.forward = attention_args(shape, dtype, q, k, v, out, log_sum_exp);
                   args.grad_out = token_view(grad_out);
                   args.grad_q = token_view(grad_q);
                   args.grad_k = token_view(grad_k);
                   args.grad_v = token_view(grad_v);
                   py::gil_scoped_release release;
                   op(args, where...);
               });
}

}  // namespace edm_fast::bindings
