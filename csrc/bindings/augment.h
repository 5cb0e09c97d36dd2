// The augmentation of training images for any backend; see ops.h. Absent parameters are pointer 0.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>

#include "edm_fast/augment.h"
#include "ops.h"

namespace edm_fast::bindings {

// shape: samples, channels, height, width.
template <class... Where>
void def_augment(py::module_& module, void (*op)(const AugmentArgs&, Where...)) {
    module.def("augment", [op](std::tuple<int64_t, int64_t, int64_t, int64_t> shape, View images, uintptr_t blit,
                               uintptr_t geometry, uintptr_t colour, View out, Where... where) {
        AugmentArgs args{};
        std::tie(args.samples, args.channels, args.height, args.width) = shape;
        args.images = image_view(images);
        args.out = image_view(out);
        args.blit = pointer<const int32_t>(blit);
        args.geometry = pointer<const float>(geometry);
        args.colour = pointer<const float>(colour);
        py::gil_scoped_release release;
        op(args, where...);
    });
}

}  // namespace edm_fast::bindings
