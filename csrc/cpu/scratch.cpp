#include "scratch.h"

#include <cstdlib>
#include <new>

namespace edm_fast::cpu {

namespace {

struct Block {
    void* memory = nullptr;
    std::size_t bytes = 0;

    ~Block() { std::free(memory); }
};

thread_local Block held;

}  // namespace

void* scratch(std::size_t bytes) {
    if (bytes > held.bytes) {
        std::free(held.memory);
        held = {nullptr, 0};
        const std::size_t rounded = (bytes + 4095) / 4096 * 4096;
        held.memory = std::aligned_alloc(4096, rounded);
        if (held.memory == nullptr) throw std::bad_alloc();
        held.bytes = rounded;
    }
    return held.memory;
}

std::size_t scratch_held() {
    return held.bytes;
}

}  // namespace edm_fast::cpu
