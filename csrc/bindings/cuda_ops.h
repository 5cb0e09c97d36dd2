// All ops that have CUDA kernels, for edm_fast._C.cuda and for the host emulator's module.
#pragma once

#include "augment.h"
#include "network_ops.h"
#include "ops.h"
#include "training_ops.h"

namespace edm_fast::bindings {

// The CUDA entry points take their stream as an opaque pointer; Python has it as an integer.
template <class Args, void (*op)(const Args&, int, void*)>
void on_stream(const Args& args, int device, uintptr_t stream) {
    op(args, device, pointer<void>(stream));
}

inline void def_cuda_ops(py::module_& module) {
    def_randn(module, &on_stream<RandnArgs, cuda::randn>);
    def_solver_step(module, &on_stream<SolverStepArgs, cuda::solver_step>);
    def_group_norm_silu(module, &on_stream<GroupNormSiluArgs, cuda::group_norm_silu>);
    def_group_norm_silu_grad(module, &on_stream<GroupNormSiluGradArgs, cuda::group_norm_silu_grad>);
    def_resample(module, &on_stream<ResampleArgs, cuda::resample>);
    def_residual(module, &on_stream<ResidualArgs, cuda::residual>);
    def_conv2d_split(module, &on_stream<Conv2dSplitArgs, cuda::conv2d_split>);
    def_noise_augment(module, &on_stream<NoiseAugmentArgs, cuda::noise_augment>);
    def_denoising_loss(module, &on_stream<DenoisingLossArgs, cuda::denoising_loss>);
    def_augment(module, &on_stream<AugmentArgs, cuda::augment>);
}

}  // namespace edm_fast::bindings
