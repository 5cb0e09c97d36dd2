// edm_fast_simt: the ops' CUDA sources on the host emulator, under the names that edm_fast._C.cuda has.
#include "../bindings/cuda_ops.h"
#include "simt.h"

namespace py = pybind11;

PYBIND11_MODULE(edm_fast_simt, m) {
    m.doc() = "CUDA kernels of edm_fast on the host emulator, for tests.";
    edm_fast::bindings::def_cuda_ops(m);

    m.def("launch_count", &simt::launch_count, "Kernels launched so far.");
    py::enum_<simt::ThreadOrder>(m, "ThreadOrder")
        .value("forward", simt::ThreadOrder::forward)
        .value("reverse", simt::ThreadOrder::reverse)
        .value("shuffled", simt::ThreadOrder::shuffled);
    m.def("set_thread_order", &simt::set_thread_order, py::arg("order"), py::arg("seed") = 0,
          "The order in which threads run from now on.");
}
