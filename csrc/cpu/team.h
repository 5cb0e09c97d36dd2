// A team of threads that go through a sequence of kernels together. Each kernel splits its own work by rank, such that
// no result depends on the split, and waits for the others where it must.
#pragma once

#include <cstdint>

#include "parallel.h"
#include "region.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

struct Range {
    int64_t begin, end;
};

struct Team {
    int rank = 0, size = 1;

    // Every thread of the team must call it.
    void barrier() const {
        if (size > 1) region_barrier();
    }

    // This thread's share of [0, count): consecutive, in units of `unit` (the last may be cut short).
    Range share(int64_t count, int64_t unit = 1) const {
        const int64_t units = (count + unit - 1) / unit;
        const int64_t begin = units * rank / size * unit;
        const int64_t end = units * (rank + 1) / size * unit;
        return {begin < count ? begin : count, end < count ? end : count};
    }
};

// Calls body(team) on each of up to `threads` threads.
template <class Body>
static void run_team(int threads, const Body& body) {
    if (threads > 1 && threads_survive()) {
        region(threads, [&](int rank, int size) { body(Team{rank, size}); });
    } else {
        body(Team{});
    }
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
