// The emulator as a host program sees it: launches, the order of threads, and the count of launches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include "types.h"

// What a kernel reads as its position. The scheduler sets them before it lets a thread run.
inline constinit thread_local uint3 threadIdx{};
inline constinit thread_local uint3 blockIdx{};
inline constinit thread_local dim3 blockDim{};
inline constinit thread_local dim3 gridDim{};
inline constexpr int warpSize = 32;

namespace simt {

// Which thread runs first wherever CUDA leaves that open: among blocks, among the warps of a block, among the lanes of
// a warp. A missing barrier shows as a wrong result in some order only, so tests run every kernel in several.
enum class ThreadOrder { forward, reverse, shuffled };

// For all launches of the process from now on. A seed always gives the same shuffled order.
void set_thread_order(ThreadOrder order, std::uint64_t seed = 0);

// How many kernels the process has launched. Launches that were refused for their sizes do not count.
std::uint64_t launch_count();

// The block's dynamic shared memory, aligned to 16 bytes and filled with NaN bytes when the block starts.
template <class T>
T* dynamic_shared();

namespace detail {

struct LaunchShape {
    const char* kernel;
    dim3 grid, block;
    std::size_t shared_bytes;
};

unsigned char* dynamic_shared_memory();

// Calls body(call) once for every thread of the grid. Returns when all are done; throws what a thread threw.
void run(const LaunchShape& shape, void (*body)(const void*), const void* call);

}  // namespace detail

template <class T>
T* dynamic_shared() {
    static_assert(alignof(T) <= 16, "dynamic shared memory is aligned to 16 bytes");
    return reinterpret_cast<T*>(detail::dynamic_shared_memory());
}

// Runs the kernel to its end. Throws KernelError (error.h), or what the kernel threw.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            Arguments&&... arguments) {
    static_assert((!std::is_reference_v<Parameters> && ...), "a kernel takes its arguments by value");
    static_assert((std::is_trivially_copyable_v<Parameters> && ...), "arguments of a kernel are copied byte by byte");
    struct Call {
        void (*kernel)(Parameters...);
        std::tuple<Parameters...> arguments;
    };
    const Call call{kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)};
    detail::run(
        {name, grid, block, shared_bytes},
        [](const void* opaque) {
            const Call& self = *static_cast<const Call*>(opaque);
            std::apply(self.kernel, self.arguments);
        },
        &call);
}

}  // namespace simt
