// The host emulator of CUDA's execution model: everything that a kernel file needs under g++. Included by cuda/simt.h.
#pragma once

#if defined(__FAST_MATH__)
#error "the emulator must keep the kernels' floating point exact: compile without -ffast-math"
#endif

#include "atomics.h"
#include "intrinsics.h"
#include "launch.h"
#include "qualifiers.h"
#include "sync.h"
#include "tensor_core.h"
#include "types.h"
