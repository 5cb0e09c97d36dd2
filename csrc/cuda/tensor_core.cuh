// Products of small matrices of 16-bit elements by a warp, summed in float32. What lane holds what is written down with
// the emulator's versions, in csrc/simt/tensor_core.h.
#pragma once

#include <cstdint>
#include <type_traits>

#include "async_copy.cuh"
#include "edm_fast/dtypes.h"
#include "simt.h"

namespace edm_fast::cuda {

// Four matrices of 8x8 elements from shared memory; `row` is the lane's: row lane % 8 of matrix lane / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&registers)[4], const void* row) {
#if defined(__CUDACC__)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(shared_address(row))
                 : "memory");
#else
    simt::load_matrices(registers, row);
#endif
}

// sum [16, 8] += a [16, 16] · b [16, 8].
template <class T>
__device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    static_assert(sizeof(T) == 2, "the elements have 16 bits");
#if defined(__CUDACC__)
    if constexpr (std::is_same_v<T, Half>) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
#else
    simt::multiply_add(sum, a, b, [](uint16_t bits) { return to_float(T{bits}); });
#endif
}

}  // namespace edm_fast::cuda
