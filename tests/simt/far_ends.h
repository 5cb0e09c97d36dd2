// What the scenarios of far_ends.cpp share: batches past 2^32 elements, and what their last sample holds.
#pragma once

#include <cstdint>
#include <type_traits>

#include "chosen_blocks.h"
#include "edm_fast/dtypes.h"
#include "edm_fast/normal.h"

namespace far_ends {

using namespace edm_fast;
using chosen::Rows;

constexpr int64_t kTwo32 = int64_t{1} << 32;

template <class T>
constexpr DType kDtype = std::is_same_v<T, Half> ? kFloat16 : kFloat32;

// Samples of `elements` each, so many that the last one lies past 2^32.
constexpr int64_t past_32_bits(int64_t elements) {
    return kTwo32 / elements + 3;
}

inline float pattern(int64_t i, unsigned seed) {  // in [-2, 2)
    return float((uint32_t(i) + seed * 7919u) * 2654435761u >> 16) * 0x1p-14f - 2.0f;
}

// Rows whose last sample has values that `seed` names.
template <class T>
class Filled : public Rows<T> {
  public:
    Filled(int64_t samples, int64_t size, unsigned seed) : Rows<T>(samples, size) {
        for (int64_t i = 0; i < size; ++i) this->last()[i] = Store<T>::from(pattern(i, seed));
    }
};

inline bool is_noise(const float* values, int64_t first, int64_t count, uint64_t seed,
                     uint32_t domain = kDomainSampler) {
    for (int64_t i = 0; i < count; ++i) {
        const Normals z = normal_block(seed, uint64_t(first + i) / 4, 7, domain);
        const float lanes[4] = {z.x, z.y, z.z, z.w};
        if (values[i] != lanes[(first + i) % 4]) return false;
    }
    return true;
}

}  // namespace far_ends
