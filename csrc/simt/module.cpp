// edm_fast_simt: the ops' CUDA sources on the host emulator, under the names that edm_fast._C.cuda has.
#include "../bindings/ops.h"
#include "simt.h"

namespace py = pybind11;

PYBIND11_MODULE(edm_fast_simt, m) {
    m.doc() = "CUDA kernels of edm_fast on the host emulator, for tests.";
    edm_fast::bindings::def_cuda_ops(m);
}
