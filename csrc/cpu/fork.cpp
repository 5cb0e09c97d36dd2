#include <pthread.h>

#include <atomic>

#include "parallel.h"

namespace edm_fast::cpu {

namespace {

std::atomic<bool> in_child{false};

const int registered = pthread_atfork(nullptr, nullptr, [] { in_child.store(true); });

}  // namespace

bool threads_survive() {
    return registered == 0 && !in_child.load(std::memory_order_relaxed);
}

}  // namespace edm_fast::cpu
