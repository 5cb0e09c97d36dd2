// CUDA's qualifiers as macros for g++. __restrict__ is g++'s own; __noinline__ must stay undefined, since libstdc++
// spells an attribute that way.
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// A static array could not be poisoned before every block, nor guarded.
#define __shared__ _Pragma("GCC error \"static __shared__ memory: use simt::dynamic_shared<T>() instead\"")
