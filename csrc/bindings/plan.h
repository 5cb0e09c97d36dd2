// The CPU plan as a Python class: steps are added one by one, then it runs. Addresses of constants (packed weights,
// biases) must stay valid as long as the plan; activations are references, (place, offset).
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "edm_fast/linear.h"
#include "edm_fast/plan.h"
#include "network_ops.h"
#include "scratch.h"

namespace edm_fast::bindings {

using Ref = std::pair<int32_t, int64_t>;
using Refs = std::pair<Ref, Ref>;
using Extents = std::pair<int64_t, int64_t>;  // height and width, or the channels of two sources

inline Reference reference(const Ref& ref) {
    return {Place(ref.first), ref.second};
}

class Plan {
  public:
    explicit Plan(int32_t dtype) : dtype_(DType(dtype)) {}

    void conv2d(Extents size, Extents channels, int64_t out_channels, int32_t kernel, int32_t padding,
                int32_t algorithm, int32_t factors, Address weight, Address bias, float scale, int32_t residual_shift,
                const Refs& source, const Ref& residual, const Ref& out) {
        ConvStep step{};
        std::tie(step.args.height, step.args.width) = size;
        std::tie(step.args.channels[0], step.args.channels[1]) = channels;
        step.args.out_channels = out_channels;
        step.args.kernel = kernel;
        step.args.padding = padding;
        step.args.algorithm = ConvAlgorithm(algorithm);
        step.args.factors = DType(factors);
        step.args.dtype = dtype_;
        step.args.weight = pointer<const float>(weight);
        step.args.bias = pointer<const float>(bias);
        step.args.scale = scale;
        step.args.residual_shift = residual_shift;
        step.source[0] = reference(source.first);
        step.source[1] = reference(source.second);
        step.residual = reference(residual);
        step.out = reference(out);
        steps_.emplace_back(step);
    }

    // norm: weight, bias, groups, eps, silu.
    void group_norm_silu(Extents size, Extents channels, Norm norm, const Filter& filter, const Refs& source,
                         const Ref& pre_bias, const Ref& scale, const Ref& shift, const Ref& out, const Ref& plain) {
        NormStep step{};
        std::tie(step.args.height, step.args.width) = size;
        std::tie(step.args.channels[0], step.args.channels[1]) = channels;
        step.args.source_stride[0] = channels.first;
        step.args.source_stride[1] = channels.second;
        step.args.dtype = dtype_;
        step.args.sum_scale = 1;
        step.args.weight = pointer<const float>(std::get<0>(norm));
        step.args.bias = pointer<const float>(std::get<1>(norm));
        step.args.groups = std::get<2>(norm);
        step.args.eps = std::get<3>(norm);
        step.args.silu = std::get<4>(norm);
        step.args.resampling = resampling(filter);
        step.source[0] = reference(source.first);
        step.source[1] = reference(source.second);
        step.pre_bias = reference(pre_bias);
        step.scale = reference(scale);
        step.shift = reference(shift);
        step.out = reference(out);
        step.plain = reference(plain);
        steps_.emplace_back(step);
    }

    void resample(Extents size, int64_t channels, const Filter& filter, const Ref& x, const Ref& out) {
        ResampleStep step{};
        std::tie(step.args.height, step.args.width) = size;
        step.args.channels = channels;
        step.args.dtype = dtype_;
        step.args.resampling = bindings::resampling(filter);
        step.x = reference(x);
        step.out = reference(out);
        steps_.emplace_back(step);
    }

    void residual(int64_t pixels, int64_t channels, float scale, const Ref& a, const Ref& b, const Ref& out) {
        ResidualStep step{};
        step.args.pixels = pixels;
        step.args.channels = step.args.out_stride = channels;
        step.args.dtype = dtype_;
        step.args.scale = scale;
        step.a = reference(a);
        step.b = reference(b);
        step.out = reference(out);
        steps_.emplace_back(step);
    }

    void attention(int64_t heads, int64_t tokens, int64_t head_channels, const Ref& qkv, const Ref& out) {
        AttentionStep step{};
        step.args.heads = heads;
        step.args.tokens = tokens;
        step.args.head_channels = head_channels;
        step.args.dtype = dtype_;
        step.qkv = reference(qkv);
        step.out = reference(out);
        steps_.emplace_back(step);
    }

    // Sizes in bytes per sample.
    void finish(int64_t arena_bytes, int64_t input_bytes, int64_t output_bytes, bool one_thread_per_sample,
                int64_t samples_at_once) {
        run_ = RunPlanArgs{};
        run_.arena_bytes = arena_bytes;
        run_.input_bytes = input_bytes;
        run_.output_bytes = output_bytes;
        run_.one_thread_per_sample = one_thread_per_sample;
        run_.samples_at_once = samples_at_once;
    }

    void run(int64_t samples, Address input, Address output, const Rows& modulation, int threads) const {
        RunPlanArgs args = run_;
        args.steps = &steps_;
        args.samples = samples;
        args.input = pointer<const void>(input);
        args.output = pointer<void>(output);
        args.modulation = pointer<const float>(std::get<0>(modulation));
        args.modulation_stride = std::get<1>(modulation);
        pybind11::gil_scoped_release release;
        cpu::run_plan(args, threads);
    }

    int64_t memory(int64_t samples, int threads) const {
        RunPlanArgs args = run_;
        args.steps = &steps_;
        args.samples = samples;
        return cpu::plan_memory(args, threads);
    }

  private:
    DType dtype_;
    std::vector<PlanStep> steps_;
    RunPlanArgs run_{};
};

inline void def_plan(py::module_& module) {
    py::class_<Plan>(module, "Plan")
        .def(py::init<int32_t>())
        .def("conv2d", &Plan::conv2d)
        .def("group_norm_silu", &Plan::group_norm_silu)
        .def("resample", &Plan::resample)
        .def("residual", &Plan::residual)
        .def("attention", &Plan::attention)
        .def("finish", &Plan::finish)
        .def("run", &Plan::run)
        .def("memory", &Plan::memory);
    module.def("linear", [](std::tuple<int64_t, int64_t, int64_t> shape, Address x, Address weight, Address bias,
                            Address addend, bool silu, Address out, int threads) {
        LinearArgs args{};
        std::tie(args.rows, args.in_features, args.out_features) = shape;
        args.x = pointer<const float>(x);
        args.weight = pointer<const float>(weight);
        args.bias = pointer<const float>(bias);
        args.addend = pointer<const float>(addend);
        args.silu = silu;
        args.out = pointer<float>(out);
        py::gil_scoped_release release;
        cpu::linear(args, threads);
    });
    module.def("conv2d_packed_size", [](int64_t in_channels, int64_t out_channels, int32_t kernel, int32_t algorithm,
                                        int32_t factors) {
        return cpu::conv2d_packed_size(in_channels, out_channels, kernel, ConvAlgorithm(algorithm), DType(factors));
    });
    module.def("multiplies_pairs", &cpu::multiplies_pairs);
    module.def("multiplies_tiles", &cpu::multiplies_tiles);
    module.def("use_huge_pages",
               [](Address memory, std::size_t bytes) { cpu::use_huge_pages(pointer<void>(memory), bytes); });
    module.def("pack_conv2d", [](int64_t in_channels, int64_t out_channels, int32_t kernel, int32_t algorithm,
                                 int32_t factors, bool turned, Address weight, Address packed, int threads) {
        const PackConv2dArgs args{in_channels,
                                  out_channels,
                                  kernel,
                                  ConvAlgorithm(algorithm),
                                  DType(factors),
                                  turned,
                                  pointer<const float>(weight),
                                  pointer<float>(packed)};
        py::gil_scoped_release release;
        cpu::pack_conv2d(args, threads);
    });
    module.def("conv2d", [](Shape shape, Extents channels, int64_t out_channels, int32_t kernel, int32_t padding,
                            int32_t algorithm, int32_t factors, int32_t dtype, Address first, Address second,
                            Address weight, Address bias, const Rows& channel_bias, Address residual,
                            int32_t residual_shift, float scale, Address out, int threads) {
        Conv2dArgs args{};
        std::tie(args.samples, args.height, args.width) = shape;
        std::tie(args.channels[0], args.channels[1]) = channels;
        args.out_channels = out_channels;
        args.kernel = kernel;
        args.padding = padding;
        args.algorithm = ConvAlgorithm(algorithm);
        args.factors = DType(factors);
        args.dtype = DType(dtype);
        args.source[0] = pointer<const void>(first);
        args.source[1] = pointer<const void>(second);
        args.weight = pointer<const float>(weight);
        args.bias = pointer<const float>(bias);
        args.channel_bias = pointer<const float>(std::get<0>(channel_bias));
        args.channel_bias_stride = std::get<1>(channel_bias);
        args.residual = pointer<const void>(residual);
        args.residual_shift = residual_shift;
        args.scale = scale;
        args.out = pointer<void>(out);
        py::gil_scoped_release release;
        cpu::conv2d(args, threads);
    });
    module.def("conv2d_weight_grad", [](Shape shape, Extents channels, int32_t padding, int32_t algorithm,
                                        int32_t dtype, Address x, Address grad, Address out, int threads) {
        Conv2dWeightGradArgs args{};
        std::tie(args.samples, args.height, args.width) = shape;
        std::tie(args.in_channels, args.out_channels) = channels;
        args.padding = padding;
        args.algorithm = ConvAlgorithm(algorithm);
        args.dtype = DType(dtype);
        args.x = pointer<const void>(x);
        args.grad = pointer<const void>(grad);
        args.out = pointer<float>(out);
        py::gil_scoped_release release;
        cpu::conv2d_weight_grad(args, threads);
    });
}

}  // namespace edm_fast::bindings
