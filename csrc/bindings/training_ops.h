// The ops of training for any backend; see ops.h.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "edm_fast/denoising_loss.h"
#include "edm_fast/dropout.h"
#include "edm_fast/noise_augment.h"
#include "ops.h"

namespace edm_fast::bindings {

// source, a, b, c, preconditioning, sigma_data, beta_d, beta_min, levels, weight_sigma_data
inline LevelRule level_rule(const std::vector<double>& rule) {
    if (rule.size() != 10) throw std::invalid_argument("rule: ten numbers are needed");
    return {SigmaSource(int(rule[0])),
            rule[1],
            rule[2],
            rule[3],
            Preconditioning(int(rule[4])),
            rule[5],
            rule[6],
            rule[7],
            rule[8],
            rule[9]};
}

template <class... Where>
void def_noise_augment(py::module_& module, void (*op)(const NoiseAugmentArgs&, Where...)) {
    module.def("noise_augment",
               [op](Shape shape, const std::vector<double>& rule, uint32_t draw, uintptr_t seeds, uintptr_t sigma,
                    uintptr_t rows, View images, View noise, View net_input, Where... where) {
                   NoiseAugmentArgs args{};
                   std::tie(args.samples, args.channels, args.pixels) = shape;
                   args.rule = level_rule(rule);
                   args.draw = draw;
                   args.seeds = pointer<const int64_t>(seeds);
                   args.sigma = pointer<const float>(sigma);
                   args.rows = pointer<float>(rows);
                   args.images = image_view(images);
                   args.noise = image_view(noise);
                   args.net_input = image_view(net_input);
                   py::gil_scoped_release release;
                   op(args, where...);
               });
}

inline void def_dropout(py::module_& module) {
    module.def("dropout", [](int64_t elements, int32_t dtype, double p, uintptr_t seed, uintptr_t x, uintptr_t out,
                             int threads) {
        const DropoutArgs args{elements,          DType(dtype), p, pointer<const int64_t>(seed), pointer<const void>(x),
                               pointer<void>(out)};
        py::gil_scoped_release release;
        cpu::dropout(args, threads);
    });
}

template <class... Where>
void def_denoising_loss(py::module_& module, void (*op)(const DenoisingLossArgs&, Where...)) {
    module.def("denoising_loss",
               [op](Shape shape, uint32_t draw, uintptr_t seeds, uintptr_t rows, View images, View noise,
                    View net_input, View model_output, uintptr_t loss, View error, View slope, Where... where) {
                   DenoisingLossArgs args{};
                   std::tie(args.samples, args.channels, args.pixels) = shape;
                   args.draw = draw;
                   args.seeds = pointer<const int64_t>(seeds);
                   args.rows = pointer<const float>(rows);
                   args.images = image_view(images);
                   args.noise = image_view(noise);
                   args.net_input = image_view(net_input);
                   args.model_output = image_view(model_output);
                   args.loss = pointer<float>(loss);
                   args.error = image_view(error);
                   args.slope = image_view(slope);
                   py::gil_scoped_release release;
                   op(args, where...);
               });
}

}  // namespace edm_fast::bindings
