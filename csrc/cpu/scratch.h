// Working memory that is kept between calls: fresh pages cost more than the arithmetic done on them.
#pragma once

#include <cstddef>

namespace edm_fast::cpu {

// At least `bytes` bytes, aligned to 64, contents undefined; valid until the calling thread's next call. Memory is
// freed when the thread ends. Throws std::bad_alloc with the size that was wanted.
void* scratch(std::size_t bytes);

// Asks the system for large pages in [memory, memory + bytes), before the memory is written; a wish, which may be
// ignored. Kernels that go through many planes at once spend much of their time on address translation otherwise.
void use_huge_pages(void* memory, std::size_t bytes);

}  // namespace edm_fast::cpu
