// Device memory for the time between two kernels of one call, in the order of a stream: it can be captured in a graph,
// and takes next to no time once a pool has it. Under the host emulator it is poisoned heap memory.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "launch.cuh"

namespace edm_fast::cuda {

#if defined(EDM_FAST_SIMT)

class Workspace {
  public:
    Workspace(std::size_t bytes, int /*device*/, void* /*stream*/) : memory_(new unsigned char[bytes]) {
        std::memset(memory_.get(), 0xFF, bytes);
    }
    float* data() const { return reinterpret_cast<float*>(memory_.get()); }

  private:
    std::unique_ptr<unsigned char[]> memory_;
};

// Dynamic shared memory that a block may ask for: Hopper's.
inline int max_shared_bytes(int /*device*/) {
    return 227 * 1024;
}

#else

namespace detail {

inline void check(cudaError_t error, const char* action) {
    if (error != cudaSuccess) fail(error, action);
}

// A pool of our own keeps what it has: the device's default pool hands memory back at every synchronisation, and the
// next allocation would wait for the driver.
inline cudaMemPool_t workspace_pool(int device) {
    static std::mutex mutex;
    static std::vector<cudaMemPool_t> pools;
    const std::lock_guard<std::mutex> lock(mutex);
    if (pools.size() <= std::size_t(device)) pools.resize(std::size_t(device) + 1, nullptr);
    cudaMemPool_t& pool = pools[std::size_t(device)];
    if (pool == nullptr) {
        cudaMemPoolProps properties{};
        properties.allocType = cudaMemAllocationTypePinned;
        properties.location.type = cudaMemLocationTypeDevice;
        properties.location.id = device;
        check(cudaMemPoolCreate(&pool, &properties), "cannot create a memory pool");
        unsigned long long keep = ~0ull;
        check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep), "cannot set up a memory pool");
    }
    return pool;
}

}  // namespace detail

class Workspace {
  public:
    Workspace(std::size_t bytes, int device, void* stream) : stream_(static_cast<cudaStream_t>(stream)) {
        detail::check(cudaMallocFromPoolAsync(&memory_, bytes, detail::workspace_pool(device), stream_),
                      "cannot allocate a workspace");
    }
    ~Workspace() { cudaFreeAsync(memory_, stream_); }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    float* data() const { return static_cast<float*>(memory_); }

  private:
    void* memory_ = nullptr;
    cudaStream_t stream_;
};

// Dynamic shared memory that a block may ask for.
inline int max_shared_bytes(int device) {
    int bytes = 0;
    detail::check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                  "cannot read the size of shared memory");
    return bytes;
}

#endif

}  // namespace edm_fast::cuda
