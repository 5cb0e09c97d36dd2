// Matrix tiles of AMX: eight registers of 16 rows x 64 bytes, which multiply bfloat16 and sum in float32. Written as
// assembly, since the rest must run on processors without them; compilers use no tile by themselves.
#pragma once

#include <cstdint>

#include "simd.h"

#if defined(EDM_FAST_TILES)

namespace edm_fast::cpu::EDM_FAST_ISA {

constexpr int64_t kTileSize = 16;     // rows of a tile, and float32 columns
constexpr int64_t kTileFactors = 32;  // bfloat16 in a row

// Whole tiles while it lives, on this thread. The state of tiles costs time at every change of threads, so it is given
// back.
class TileScope {
  public:
    TileScope() {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } config;
        asm volatile("ldtilecfg %0" : : "m"(config));
    }
    ~TileScope() { asm volatile("tilerelease"); }
    TileScope(const TileScope&) = delete;
    TileScope& operator=(const TileScope&) = delete;
};

template <int kTile>
EDM_FAST_INLINE void tile_zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

// Rows of 64 bytes, `stride` bytes apart.
template <int kTile>
EDM_FAST_INLINE void tile_load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
EDM_FAST_INLINE void tile_store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
}

// sum[i][j] += over k of a[i][2k] · b[k][2j] + a[i][2k + 1] · b[k][2j + 1]; subnormal numbers count as 0.
template <int kSum, int kA, int kB>
EDM_FAST_INLINE void tile_multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA

#endif
