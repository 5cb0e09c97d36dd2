// One function per op, for any backend: packs the scalars into the op's argument struct, releases the GIL, calls.
// Pointers come as integers; a view is (pointer, dtype code, sample, channel and pixel stride in elements), pointer 0
// for an absent tensor. Shapes, dtypes and devices are checked in edm_fast/ops, not here.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>

#include "edm_fast/randn.h"
#include "edm_fast/solver_step.h"

namespace edm_fast::bindings {

namespace py = pybind11;

using Shape = std::tuple<int64_t, int64_t, int64_t>;
using View = std::tuple<uintptr_t, int32_t, int64_t, int64_t, int64_t>;
using StateViews = std::tuple<View, View, View, View>;

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

inline ImageView image_view(const View& view) {
    const auto& [address, dtype, sample, channel, pixel] = view;
    return {pointer<void>(address), sample, channel, pixel, DType(dtype)};
}

// Where: what a backend needs besides the arguments: (threads) or (device, stream).
template <class... Where>
void def_randn(py::module_& module, void (*op)(const RandnArgs&, Where...)) {
    module.def("randn", [op](Shape shape, uintptr_t seeds, uint32_t draw, uint32_t domain, View out, Where... where) {
        RandnArgs args{};
        std::tie(args.samples, args.channels, args.pixels) = shape;
        args.seeds = pointer<const int64_t>(seeds);
        args.draw = draw;
        args.domain = domain;
        args.out = image_view(out);
        py::gil_scoped_release release;
        op(args, where...);
    });
}

template <class... Where>
void def_solver_step(py::module_& module, void (*op)(const SolverStepArgs&, Where...)) {
    module.def("solver_step", [op](Shape shape, uintptr_t table, int64_t row, uintptr_t row_offset, int32_t state_dtype,
                                   const StateViews& state, View model_output, View guide_output, uintptr_t seeds,
                                   View noise, View net_input, View denoised, uintptr_t first_bad, Where... where) {
        SolverStepArgs args{};
        std::tie(args.samples, args.channels, args.pixels) = shape;
        args.table = pointer<const double>(table);
        args.row = row;
        args.row_offset = pointer<const int64_t>(row_offset);
        args.state_dtype = DType(state_dtype);
        args.state[0] = image_view(std::get<0>(state));
        args.state[1] = image_view(std::get<1>(state));
        args.state[2] = image_view(std::get<2>(state));
        args.state[3] = image_view(std::get<3>(state));
        args.model_output = image_view(model_output);
        args.guide_output = image_view(guide_output);
        args.seeds = pointer<const int64_t>(seeds);
        args.noise = image_view(noise);
        args.net_input = image_view(net_input);
        args.denoised = image_view(denoised);
        args.first_bad = pointer<int64_t>(first_bad);
        py::gil_scoped_release release;
        op(args, where...);
    });
}

}  // namespace edm_fast::bindings
