// The dynamic shared memory of one block after another, poisoned and guarded.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <optional>

#include "fiber.h"

namespace simt::detail {

// Without AddressSanitizer the memory lies between two guard zones that nobody may write to. With it every block gets
// an allocation of exactly the launch's size: then reads out of bounds are found too, and pointers kept from another
// block.
class SharedMemory {
  public:
    explicit SharedMemory(std::size_t bytes) : bytes_(bytes) {}

    // Fills the memory with 0xFF: a NaN in every floating-point type.
    void begin_block() {
        if (guard_bytes == 0 || memory_ == nullptr) allocate();
        std::memset(data(), 0xFF, bytes_);
    }

    unsigned char* data() const { return memory_.get() + guard_bytes; }

    // Where the block wrote out of bounds, in bytes from data(): negative below it, the size or more above.
    std::optional<std::ptrdiff_t> out_of_bounds_write() const {
        for (std::size_t i = 0; i < guard_bytes; ++i) {
            if (memory_[i] != guard_byte(i)) return static_cast<std::ptrdiff_t>(i) - std::ptrdiff_t{guard_bytes};
        }
        const std::size_t end = guard_bytes + bytes_;
        for (std::size_t i = end; i < end + guard_bytes; ++i) {
            if (memory_[i] != guard_byte(i)) return static_cast<std::ptrdiff_t>(i - guard_bytes);
        }
        return std::nullopt;
    }

  private:
#if defined(EDM_FAST_SIMT_ASAN)
    static constexpr std::size_t guard_bytes = 0;
#else
    static constexpr std::size_t guard_bytes = 4096;
#endif
    static constexpr std::align_val_t alignment{16};

    struct Free {
        void operator()(unsigned char* memory) const { ::operator delete(memory, alignment); }
    };

    // F5 FF F5 FF … is NaN in every floating-point type as well, and differs from the poison.
    static constexpr unsigned char guard_byte(std::size_t index) { return index % 2 == 0 ? 0xF5 : 0xFF; }

    void allocate() {
        const std::size_t total = bytes_ + 2 * guard_bytes;
        memory_.reset(static_cast<unsigned char*>(::operator new(total, alignment)));
        for (std::size_t i = 0; i < guard_bytes; ++i) {
            memory_[i] = guard_byte(i);
            memory_[total - 1 - i] = guard_byte(total - 1 - i);
        }
    }

    std::size_t bytes_;
    std::unique_ptr<unsigned char[], Free> memory_;
};

}  // namespace simt::detail
