// The only door to CUDA names for kernels. nvcc sees the CUDA runtime; g++ with EDM_FAST_SIMT defined sees the host
// emulator in csrc/simt, so that the very same .cu files run in tests on a machine without a GPU.
//
// A kernel file includes this header and launch.cuh, and then
//   - launches through EDM_FAST_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...). A kernel whose name
//     holds a comma stands in parentheses: EDM_FAST_LAUNCH((scale<float, true>), ...);
//   - takes shared memory from simt::dynamic_shared<T>() only. Several arrays are offsets into it, or members of one
//     struct T. Static __shared__ variables do not compile here: the emulator could neither poison nor guard them.
// Under g++ `#pragma unroll` means nothing and needs -Wno-unknown-pragmas.
#pragma once

#if defined(EDM_FAST_SIMT)
#if defined(__CUDACC__)
#error "EDM_FAST_SIMT selects the host emulator, which is compiled by g++ and not by nvcc"
#endif
#include "../simt/emulator.h"
#elif defined(__CUDACC__)
#include <cuda_runtime.h>

namespace simt {

// The block's dynamic shared memory, aligned to 16 bytes. Its size is the launch's shared_bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
    static_assert(alignof(T) <= 16, "dynamic shared memory is aligned to 16 bytes");
    extern __shared__ __align__(16) unsigned char edm_fast_dynamic_shared[];
    return reinterpret_cast<T*>(edm_fast_dynamic_shared);
}

}  // namespace simt

#else
#error "a CUDA kernel needs nvcc, or g++ with -DEDM_FAST_SIMT for the host emulator"
#endif

// Launches and throws std::runtime_error with the kernel's name if that fails. `stream` is a cudaStream_t as void*.
#define EDM_FAST_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    ::edm_fast::cuda::launch(#kernel, kernel, grid, block, shared_bytes, stream __VA_OPT__(, ) __VA_ARGS__)
