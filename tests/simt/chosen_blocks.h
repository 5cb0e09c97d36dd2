// Launches that are too large to run. Programs that are linked with --wrap for simt::detail::run (chosen_blocks.cpp)
// run chosen blocks of each launch alone, and Rows takes address space for images of which one sample has values.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "simt.h"

namespace chosen {

// The blocks to run of a grid.
using Choice = std::function<std::vector<uint3>(dim3 grid)>;

// For all launches from now on, which also must be such as a device takes; and forgets the grids of earlier ones.
void choose(Choice choice);
const std::vector<dim3>& grids();

inline std::vector<uint3> none(dim3 /*grid*/) {
    return {};
}

inline std::vector<uint3> all(dim3 grid) {
    std::vector<uint3> blocks;
    for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) blocks.push_back({x, y, 0});
    }
    return blocks;
}

// Of grids that have the same number of blocks for every sample, those of the last sample behind each other.
inline Choice last_of(int64_t samples) {
    return [samples](dim3 grid) {
        std::vector<uint3> blocks;
        for (int64_t x = grid.x - grid.x / samples; x < grid.x; ++x) blocks.push_back({unsigned(x), 0, 0});
        return blocks;
    };
}

// Of grids whose y goes through rows, those that have the last `count` of them.
inline Choice last_rows_of(int64_t rows, int64_t count = 1) {
    return [rows, count](dim3 grid) {
        std::vector<uint3> blocks;
        for (int64_t row = rows - count; row < rows; ++row) {
            for (unsigned x = 0; x < grid.x; ++x) blocks.push_back({x, unsigned(row % grid.y), 0});
        }
        return blocks;
    };
}

// The block that has the last of `items`, if block i takes items i, i + gridDim.x, …
inline Choice last_in_turn(int64_t items) {
    return [items](dim3 grid) { return std::vector<uint3>{{unsigned((items - 1) % grid.x), 0, 0}}; };
}

// This system does not give so much address space.
class NoSpace : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// `count` zeros. Memory stands behind the pages alone that something touches.
template <class T>
class Space {
  public:
    explicit Space(int64_t count) : bytes_(std::size_t(std::max<int64_t>(count, 1)) * sizeof(T)) {
        memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory_ == MAP_FAILED) throw NoSpace("no address space of " + std::to_string(bytes_) + " bytes");
        madvise(memory_, bytes_, MADV_NOHUGEPAGE);
    }
    ~Space() { munmap(memory_, bytes_); }
    Space(const Space&) = delete;
    Space& operator=(const Space&) = delete;
    T* data() const { return static_cast<T*>(memory_); }

  private:
    std::size_t bytes_;
    void* memory_;
};

// [samples, size], of which the last sample is poisoned or filled, and the others are zeros.
template <class T>
class Rows {
  public:
    Rows(int64_t samples, int64_t size)
        : space_(samples * size), last_(space_.data() + (samples - 1) * size), size_(size) {
        // Poison of another kind for one sample: what neither of two calls wrote must not look the same.
        std::memset(last_, samples == 1 ? 0xEE : 0xFF, std::size_t(size) * sizeof(T));
    }
    T* data() const { return space_.data(); }
    T* last() const { return last_; }
    int64_t size() const { return size_; }

  private:
    Space<T> space_;
    T* last_;
    int64_t size_;
};

template <class T>
bool same_last(const Rows<T>& a, const Rows<T>& b) {
    return a.size() == b.size() && std::memcmp(a.last(), b.last(), std::size_t(a.size()) * sizeof(T)) == 0;
}

}  // namespace chosen
