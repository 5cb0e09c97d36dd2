// Threads for the CPU kernels: a loop whose results cannot depend on the number of threads, since every index is
// computed alone.
#pragma once

#include <cstdint>

#include "region.h"

namespace edm_fast::cpu {

// False in a child of fork(): libgomp's threads do not survive it, and starting a region there would wait for them
// forever.
bool threads_survive();

namespace EDM_FAST_ISA {

// Calls body(i) for i in [0, count), on at most `threads` threads.
template <class Body>
static void parallel_for(int64_t count, int threads, const Body& body) {
    if (threads <= 1 || count <= 1 || !threads_survive()) {
        for (int64_t i = 0; i < count; ++i) body(i);
        return;
    }
    region(threads, [&](int rank, int size) {
        const int64_t end = count * (rank + 1) / size;
        for (int64_t i = count * rank / size; i < end; ++i) body(i);
    });
}

}  // namespace EDM_FAST_ISA
}  // namespace edm_fast::cpu
