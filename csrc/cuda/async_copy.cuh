// Copies from global into shared memory, past the registers, that go on while the thread does something else. After its
// wait a thread may read what it copied itself; others may after a barrier behind that.
#pragma once

#include <cstdint>

#include "simt.h"

namespace edm_fast::cuda {

#if defined(__CUDACC__)

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
    return uint32_t(__cvta_generic_to_shared(shared));
}

// Sixteen bytes, aligned.
__device__ __forceinline__ void copy_async(uint4* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}

// Sixteen bytes, aligned, or, unless `present`, as many zeros; `global` is an address in either case.
__device__ __forceinline__ void copy_async_or_zero(uint4* shared, const void* global, bool present) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(present ? 16 : 0)
                 : "memory");
}

// Ends a group of copies.
__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most the last kPending groups are under way.
template <int kPending>
__device__ __forceinline__ void wait_for_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Waits for all copies, whether or not their group has ended.
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

#else

__device__ __forceinline__ void copy_async(uint4* shared, const void* global) {
    simt::copy_async(shared, global, 16);
}

__device__ __forceinline__ void copy_async_or_zero(uint4* shared, const void* global, bool present) {
    simt::copy_async(shared, global, present ? 16 : 0);
}

__device__ __forceinline__ void commit_copies() {
    simt::commit_copies();
}

template <int kPending>
__device__ __forceinline__ void wait_for_groups() {
    simt::wait_for_copies(kPending);
}

__device__ __forceinline__ void wait_for_copies() {
    simt::commit_copies();
    simt::wait_for_copies(0);
}

#endif

}  // namespace edm_fast::cuda
