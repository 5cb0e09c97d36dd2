// A region of several threads by libgomp, so that PyTorch and the kernels share one pool. GCC compiles OpenMP's
// directives to calls of it. Clang has a runtime with a pool of its own, so there it is called by hand.
#pragma once

#if defined(EDM_FAST_LIBGOMP)
extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
void GOMP_barrier();
int omp_get_thread_num();
int omp_get_num_threads();
void omp_set_num_threads(int threads);
}
#define EDM_FAST_THREADS
#elif defined(_OPENMP)
#include <omp.h>
#define EDM_FAST_THREADS
#endif

namespace edm_fast::cpu::EDM_FAST_ISA {

// Calls body(rank, size) on `size` threads, which are at most `threads`; on this one alone where there are no others.
template <class Body>
static void region(int threads, const Body& body) {
#if defined(EDM_FAST_LIBGOMP)
    const auto one = [](void* data) { (*(const Body*)data)(omp_get_thread_num(), omp_get_num_threads()); };
    GOMP_parallel(one, (void*)&body, unsigned(threads), 0);
#elif defined(EDM_FAST_THREADS)
#pragma omp parallel num_threads(threads)
    body(omp_get_thread_num(), omp_get_num_threads());
#else
    (void)threads;
    body(0, 1);
#endif
}

// Every thread of the region must call it.
static inline void region_barrier() {
#if defined(EDM_FAST_LIBGOMP)
    GOMP_barrier();
#elif defined(EDM_FAST_THREADS)
#pragma omp barrier
#endif
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
