// Launching: grid sizes, the current device, and the one place where launch errors become exceptions.
// Under the host emulator there is one device and no driver, and the same names do next to nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "simt.h"

namespace edm_fast::cuda {

constexpr std::int64_t ceil_div(std::int64_t dividend, std::int64_t divisor) {
    return dividend / divisor + (dividend % divisor != 0);
}

// The largest gridDim.x, and gridDim.y and z.
inline constexpr std::int64_t max_grid_x = 2147483647;
inline constexpr std::int64_t max_grid_y = 65535;
inline constexpr std::int64_t max_grid_z = 65535;

// Blocks for `items` at `items_per_block`, from 1 to `limit`. With a limit below the need, or with no items, the
// kernel's own loop over the grid must still be right: CUDA accepts no empty grid.
constexpr unsigned grid_size(std::int64_t items, std::int64_t items_per_block, std::int64_t limit = max_grid_x) {
    const std::int64_t blocks = ceil_div(items, items_per_block);
    return static_cast<unsigned>(blocks < 1 ? 1 : blocks > limit ? limit : blocks);
}

}  // namespace edm_fast::cuda

#if defined(EDM_FAST_SIMT)

namespace edm_fast::cuda {

class DeviceGuard {
  public:
    explicit DeviceGuard(int /*device*/) {}
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;
};

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            void* /*stream*/, Arguments&&... arguments) {
    simt::launch(name, kernel, grid, block, shared_bytes, std::forward<Arguments>(arguments)...);
}

}  // namespace edm_fast::cuda

#else

#include <mutex>
#include <stdexcept>
#include <string>

namespace edm_fast::cuda {

#define EDM_FAST_TO_STRING(...) #__VA_ARGS__
#define EDM_FAST_EXPAND_TO_STRING(...) EDM_FAST_TO_STRING(__VA_ARGS__)

namespace detail {

inline std::string version_text(int version) {  // 13020 is CUDA 13.2
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// The architectures this file was compiled for, as nvcc lists them: "800,900" becomes "8.0, 9.0".
inline std::string built_architectures() {
    const std::string list = EDM_FAST_EXPAND_TO_STRING(__CUDA_ARCH_LIST__) ",";
    std::string text;
    for (std::size_t start = 0, end; (end = list.find(',', start)) != std::string::npos; start = end + 1) {
        const int architecture = std::stoi(list.substr(start, end - start));
        text += (text.empty() ? "" : ", ") + std::to_string(architecture / 100) + "." +
                std::to_string(architecture % 100 / 10);
    }
    return text;
}

inline std::string found_driver() {
    int version = 0;
    if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) return "no NVIDIA driver";
    return "an NVIDIA driver for CUDA " + version_text(version);
}

inline std::string found_device() {
    int device = 0, major = 0, minor = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
        return "a device that cannot be queried";
    }
    return "device " + std::to_string(device) + " with compute capability " + std::to_string(major) + "." +
           std::to_string(minor);
}

// CUDA's words, and for an unsuitable machine also what was found and what is required.
inline std::string explain(cudaError_t error) {
    const std::string text = cudaGetErrorString(error);
    switch (error) {
        case cudaErrorInsufficientDriver:
            // Within a major version any driver runs any runtime.
            return text + ": found " + found_driver() + ", required a driver for CUDA " +
                   version_text(CUDART_VERSION / 1000 * 1000) + " or newer";
        case cudaErrorNoDevice:
            return text + ": found " + found_driver() + " but no visible device, required one of compute capability " +
                   built_architectures() + " or a compatible one";
        case cudaErrorNoKernelImageForDevice:
            return text + ": found " + found_device() + ", required compute capability " + built_architectures() +
                   " or a compatible one (build for it with CUDAARCHS)";
        default:
            return text;
    }
}

[[noreturn]] inline void fail(cudaError_t error, const std::string& action, const std::string& circumstances = "") {
    // The runtime also remembers the error, and would hand it to the next caller that asks, who did nothing wrong.
    cudaGetLastError();
    throw std::runtime_error("edm_fast: " + action + ": " + explain(error) + circumstances);
}

inline std::string launch_failure(const char* name) {
    return std::string("kernel '") + name + "' failed to launch";
}

inline std::string extents_text(dim3 extents) {
    return std::to_string(extents.x) + "x" + std::to_string(extents.y) + "x" + std::to_string(extents.z);
}

}  // namespace detail

// Makes `device` current, and the previous one again at the end of the scope.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        cudaError_t error = cudaGetDevice(&previous_);
        if (error == cudaSuccess && device != previous_) {
            error = cudaSetDevice(device);
            changed_ = error == cudaSuccess;
        }
        if (error != cudaSuccess) detail::fail(error, "cannot use CUDA device " + std::to_string(device));
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(previous_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int previous_ = 0;
    bool changed_ = false;
};

namespace detail {

// Lets a kernel have so many bytes of dynamic shared memory on the current device. Never fewer than before: another
// thread, or a graph, may be about to launch it with more.
inline cudaError_t allow_shared_bytes(const void* kernel, int bytes) {
    static std::mutex changing;
    const std::lock_guard<std::mutex> lock(changing);
    cudaFuncAttributes attributes{};
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess || attributes.maxDynamicSharedSizeBytes >= bytes) return error;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

}  // namespace detail

// What EDM_FAST_LAUNCH calls. cudaLaunchKernelEx returns this launch's own error; cudaGetLastError after <<<>>> also
// returns what somebody else left behind, and would blame this kernel for it.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            void* stream, Arguments&&... arguments) {
    constexpr std::size_t shared_bytes_without_asking = 48 * 1024;
    cudaError_t error = cudaSuccess;
    if (shared_bytes > shared_bytes_without_asking) {
        error = detail::allow_shared_bytes(reinterpret_cast<const void*>(kernel), static_cast<int>(shared_bytes));
    }
    if (error == cudaSuccess) {
        cudaLaunchConfig_t config{};
        config.gridDim = grid;
        config.blockDim = block;
        config.dynamicSmemBytes = shared_bytes;
        config.stream = static_cast<cudaStream_t>(stream);
        error = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
    }
    if (error == cudaSuccess) return;
    detail::fail(error, detail::launch_failure(name),
                 " (grid " + detail::extents_text(grid) + ", block " + detail::extents_text(block) + ", " +
                     std::to_string(shared_bytes) + " bytes of dynamic shared memory)");
}

}  // namespace edm_fast::cuda

#endif
