#include "scratch.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace edm_fast::cpu {

namespace {

constexpr std::size_t kHugePage = std::size_t(2) << 20;

struct Block {
    void* memory = nullptr;
    std::size_t bytes = 0;

    ~Block() { std::free(memory); }
};

thread_local Block held;

// Says how much was wanted, in the words of PyTorch's allocator.
class OutOfMemory : public std::bad_alloc {
  public:
    explicit OutOfMemory(std::size_t bytes) {
        std::snprintf(text_, sizeof text_, "can't allocate %zu bytes of working memory", bytes);
    }
    const char* what() const noexcept override { return text_; }

  private:
    char text_[80];
};

}  // namespace

void use_huge_pages(void* memory, std::size_t bytes) {
#if defined(__linux__)
    const auto begin = (reinterpret_cast<std::uintptr_t>(memory) + kHugePage - 1) / kHugePage * kHugePage;
    const auto end = (reinterpret_cast<std::uintptr_t>(memory) + bytes) / kHugePage * kHugePage;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    static_cast<void>(memory);
    static_cast<void>(bytes);
#endif
}

void* scratch(std::size_t bytes) {
    if (bytes > held.bytes) {
        std::free(held.memory);
        held = {nullptr, 0};
        const std::size_t unit = bytes < kHugePage ? 4096 : kHugePage;
        const std::size_t rounded = (bytes + unit - 1) / unit * unit;
        held.memory = std::aligned_alloc(unit, rounded);
        if (held.memory == nullptr) throw OutOfMemory(rounded);
        use_huge_pages(held.memory, rounded);
        held.bytes = rounded;
    }
    return held.memory;
}

}  // namespace edm_fast::cpu
