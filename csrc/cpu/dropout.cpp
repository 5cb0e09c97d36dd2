#include "edm_fast/dropout.h"

#include <algorithm>

#include "batch.h"
#include "noise_block.h"
#include "parallel.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

namespace {

constexpr int64_t kRunsAtOnce = 32;

// The elements [first, first + count) of a run of kNoiseRun.
template <class T>
static void drop_run(const DropoutArgs& args, int64_t first, int64_t count) {
    alignas(64) uint32_t words[4][kNoiseBlocks];
    noise_block_words(uint64_t(*args.seed), uint64_t(first) / 4, 0, kDomainDropout, words);
    const VecBits least = VecBits{} + uint32_t(args.p * 0x1p32);
    const Vec kept = splat(float(1 / (1 - args.p))), dropped = splat(0.0f);
    const T* x = static_cast<const T*>(args.x) + first;
    T* out = static_cast<T*>(args.out) + first;
    const uint32_t* word = words[0];
    // NaN stays NaN where it is dropped, as with PyTorch.
    for_vectors(count, [&](int64_t i, int lanes) __attribute__((always_inline)) {
        VecBits drawn;
        std::memcpy(&drawn, word + i, sizeof drawn);
        store_some(out + i, load_some(x + i, lanes) * select((VecInt)(drawn >= least), kept, dropped), lanes);
    });
}

}  // namespace

void dropout(const DropoutArgs& args, int threads) {
    constexpr int64_t kRun = kRunsAtOnce * kNoiseRun;
    const int64_t runs = (args.elements + kRun - 1) / kRun;
    with_storage(args.dtype, [&](auto storage) {
        parallel_for(runs, useful_threads(args.elements, threads), [&](int64_t run) {
            const int64_t end = std::min((run + 1) * kRun, args.elements);
            for (int64_t first = run * kRun; first < end; first += kNoiseRun) {
                drop_run<decltype(storage)>(args, first, std::min(kNoiseRun, end - first));
            }
        });
    });
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
