#include <pthread.h>

#include <atomic>

#include "parallel.h"
#include "region.h"

namespace edm_fast::cpu {

namespace {

std::atomic<bool> in_child{false};

// The child has one thread and a libgomp that still counts on the parent's. Asking it for one thread keeps every loop
// of the child out of the dead pool, also those of PyTorch, which shares the library.
void enter_child() {
    in_child.store(true);
#if defined(EDM_FAST_THREADS)
    omp_set_num_threads(1);
#endif
}

const int registered = pthread_atfork(nullptr, nullptr, enter_child);

}  // namespace

bool threads_survive() {
    return registered == 0 && !in_child.load(std::memory_order_relaxed);
}

}  // namespace edm_fast::cpu
