// Qualifiers for functions that kernels and host code share; they must give the same bits in both.
#pragma once

#if defined(__CUDACC__)
#define EDM_FAST_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Always inlined, so that a copy compiled for one instruction set can never be linked into code for another.
#define EDM_FAST_HOST_DEVICE inline __attribute__((always_inline))
#endif
