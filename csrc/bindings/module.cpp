// edm_fast._C: the kernels as functions of pointers and numbers. No logic, no torch.
#include <pybind11/stl.h>

#include "augment.h"
#include "cuda_ops.h"
#include "isa.h"
#include "network_ops.h"
#include "ops.h"
#include "plan.h"
#include "training_ops.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
    m.doc() = "Compiled kernels of edm_fast; call them through edm_fast.ops.";
    m.attr("version") = EDM_FAST_VERSION;
    m.attr("compiler") = __VERSION__;
#if defined(_OPENMP) || defined(EDM_FAST_LIBGOMP)
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif

    auto cpu = m.def_submodule("cpu", "CPU kernels; the last argument is the number of threads.");
    edm_fast::bindings::def_randn(cpu, &edm_fast::cpu::randn);
    edm_fast::bindings::def_solver_step(cpu, &edm_fast::cpu::solver_step);
    edm_fast::bindings::def_plan(cpu);
    edm_fast::bindings::def_attention(cpu, &edm_fast::cpu::attention);
    edm_fast::bindings::def_group_norm_silu(cpu, &edm_fast::cpu::group_norm_silu);
    edm_fast::bindings::def_group_norm_silu_grad(cpu, &edm_fast::cpu::group_norm_silu_grad);
    edm_fast::bindings::def_resample(cpu, &edm_fast::cpu::resample);
    edm_fast::bindings::def_residual(cpu, &edm_fast::cpu::residual);
    edm_fast::bindings::def_augment(cpu, &edm_fast::cpu::augment);
    edm_fast::bindings::def_attention_grad(cpu, &edm_fast::cpu::attention_grad);
    edm_fast::bindings::def_noise_augment(cpu, &edm_fast::cpu::noise_augment);
    edm_fast::bindings::def_denoising_loss(cpu, &edm_fast::cpu::denoising_loss);
    edm_fast::bindings::def_dropout(cpu);
    cpu.def("isa", &edm_fast::cpu::isa_name, "The instruction set in use.");
    cpu.def("available_isas", &edm_fast::cpu::available_isas, "Instruction sets of this machine, widest last.");
    cpu.def("use_isa", &edm_fast::cpu::use_isa, py::arg("name"), "Use the named instruction set; for tests.");

    m.def(
        "noise_words",
        [](uint64_t seed, uint64_t block, uint32_t draw, uint32_t domain) {
            const auto words = edm_fast::noise_words(seed, block, draw, domain);
            return py::make_tuple(words.x, words.y, words.z, words.w);
        },
        py::arg("seed"), py::arg("block"), py::arg("draw"), py::arg("domain"),
        "The four Philox4x32-10 words of a block.");

    auto cuda = m.def_submodule("cuda", "CUDA kernels; the last arguments are the device and the stream handle.");
#if defined(EDM_FAST_WITH_CUDA)
    cuda.attr("architectures") = EDM_FAST_CUDA_ARCHITECTURES;
    cuda.attr("missing") = "";
    edm_fast::bindings::def_cuda_ops(cuda);
#else
    cuda.attr("architectures") = "";
    cuda.attr("missing") = EDM_FAST_CUDA_MISSING;
#endif
}
