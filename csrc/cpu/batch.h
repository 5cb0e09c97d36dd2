// How the ops on images split a batch over a team, and lay out their working memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "simd.h"
#include "team.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

// Calls body(first, last, team) such that every sample is in one range. As many whole samples as there are for each
// thread are done by one thread alone, one after the other, so that a sample stays in its cache from one pass to the
// next; what is left over is done by all together.
template <class Body>
static void for_samples(int64_t samples, const Team& team, const Body& body) {
    const int64_t alone = samples / team.size * team.size;
    const Range own = team.share(alone);
    for (int64_t sample = own.begin; sample < own.end; ++sample) body(sample, sample + 1, Team{});
    if (alone < samples) body(alone, samples, team);
}

// Few elements are not worth waking threads for.
static inline int useful_threads(int64_t elements, int threads) {
    return elements < 65536 ? 1 : threads;
}

// Calls body(channel, count) for vectors of channels; count is the constant kLanes for all but a last partial one.
template <class Body>
EDM_FAST_INLINE void for_vectors(int64_t channels, const Body& body) {
    int64_t channel = 0;
    for (; channel + kLanes <= channels; channel += kLanes) body(channel, kLanes);
    if (channel < channels) body(channel, int(channels - channel));
}

// Calls function(T{}) with the storage type that `dtype` names.
template <class Function>
static void with_storage(DType dtype, const Function& function) {
    if (dtype == kBFloat16) {
        function(BFloat16{});
    } else if (dtype == kFloat16) {
        function(Half{});
    } else {
        function(float{});
    }
}

// What a value becomes when it is stored and read back.
template <class T>
EDM_FAST_INLINE Vec rounded(Vec value) {
    if constexpr (std::is_same_v<T, float>) {
        return value;
    } else {
        T stored[kLanes];
        store(stored, value);
        return load(stored);
    }
}

// Hands out consecutive aligned arrays. Without memory it only counts the bytes.
class Arena {
  public:
    explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}

    template <class T>
    T* take(int64_t count) {
        const std::size_t at = bytes_;
        bytes_ += (std::size_t(count) * sizeof(T) + 63) / 64 * 64;
        return memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + at);
    }
    std::size_t bytes() const { return bytes_; }

  private:
    char* memory_;
    std::size_t bytes_ = 0;
};

}  // namespace edm_fast::cpu::EDM_FAST_ISA
