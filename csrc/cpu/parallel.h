// Threads for the CPU kernels: an OpenMP loop whose results cannot depend on the number of threads, since every index
// is computed alone.
#pragma once

#include <cstdint>

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
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count; ++i) body(i);
}

}  // namespace EDM_FAST_ISA
}  // namespace edm_fast::cpu
