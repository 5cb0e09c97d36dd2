// Barriers, shuffles and votes. Each notes the source line that it was called from, for messages and because threads
// that meet must meet at the same call.
#pragma once

#include <bit>
#include <cstdint>
#include <source_location>

namespace simt::detail {

// What the lanes of a warp have handed to each other.
struct WarpExchange {
    unsigned lane;                   // of the calling thread
    unsigned participants;           // bit set of the lanes that took part
    const std::uint64_t* published;  // [32], by lane; valid until the caller's next barrier or warp primitive
};

WarpExchange wait_for_warp(const char* primitive, unsigned mask, std::uint64_t value, std::source_location where);

struct BlockVotes {
    int arrived, nonzero;
};

BlockVotes wait_for_block(const char* primitive, bool predicate, std::source_location where);

// What a lane shows the others of its warp at `multiply_add`.
struct MatrixElements {
    float a[8], b[4];
};

// The running thread's, another at every second call: lanes that go on to the next primitive, and no further, leave
// what the others still read.
MatrixElements& next_elements();

[[noreturn]] void trap(std::source_location where);

template <class T>
std::uint64_t to_bits(T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move values of 4 or 8 bytes");
    if constexpr (sizeof(T) == 4) {
        return std::bit_cast<std::uint32_t>(value);
    } else {
        return std::bit_cast<std::uint64_t>(value);
    }
}

template <class T>
T from_bits(std::uint64_t bits) {
    if constexpr (sizeof(T) == 4) {
        return std::bit_cast<T>(static_cast<std::uint32_t>(bits));
    } else {
        return std::bit_cast<T>(bits);
    }
}

// What lane `source` published. CUDA leaves it open what one gets from a lane that takes no part; here it is NaN.
template <class T>
T read_lane(const WarpExchange& exchange, unsigned source) {
    const bool takes_part = (exchange.participants >> source & 1u) != 0;
    return from_bits<T>(takes_part ? exchange.published[source] : ~std::uint64_t{0});
}

// A shuffle of width w works on aligned segments of w lanes.
inline unsigned segment_start(unsigned lane, int width) {
    return lane & ~(static_cast<unsigned>(width) - 1u);
}
inline unsigned segment_end(unsigned lane, int width) {
    return segment_start(lane, width) + unsigned(width) - 1u;
}

// The lanes that published true.
inline unsigned ballot(const char* primitive, unsigned mask, bool predicate, std::source_location where) {
    const WarpExchange exchange = wait_for_warp(primitive, mask, predicate, where);
    unsigned lanes = 0;
    for (unsigned lane = 0; lane < 32; ++lane) {
        if ((exchange.participants >> lane & 1u) != 0 && exchange.published[lane] != 0) lanes |= 1u << lane;
    }
    return lanes;
}

}  // namespace simt::detail

inline void __syncthreads(std::source_location where = std::source_location::current()) {
    simt::detail::wait_for_block("__syncthreads", false, where);
}
inline int __syncthreads_count(int predicate, std::source_location where = std::source_location::current()) {
    return simt::detail::wait_for_block("__syncthreads_count", predicate != 0, where).nonzero;
}
inline int __syncthreads_and(int predicate, std::source_location where = std::source_location::current()) {
    const auto votes = simt::detail::wait_for_block("__syncthreads_and", predicate != 0, where);
    return votes.nonzero == votes.arrived;
}
inline int __syncthreads_or(int predicate, std::source_location where = std::source_location::current()) {
    return simt::detail::wait_for_block("__syncthreads_or", predicate != 0, where).nonzero != 0;
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, std::source_location where = std::source_location::current()) {
    simt::detail::wait_for_warp("__syncwarp", mask, 0, where);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              std::source_location where = std::source_location::current()) {
    using namespace simt::detail;
    const WarpExchange exchange = wait_for_warp("__shfl_sync", mask, to_bits(value), where);
    const unsigned offset = static_cast<unsigned>(source) & (static_cast<unsigned>(width) - 1u);
    return read_lane<T>(exchange, segment_start(exchange.lane, width) + offset);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 std::source_location where = std::source_location::current()) {
    using namespace simt::detail;
    const WarpExchange exchange = wait_for_warp("__shfl_up_sync", mask, to_bits(value), where);
    const bool inside = segment_start(exchange.lane, width) + delta <= exchange.lane;
    return inside ? read_lane<T>(exchange, exchange.lane - delta) : value;
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   std::source_location where = std::source_location::current()) {
    using namespace simt::detail;
    const WarpExchange exchange = wait_for_warp("__shfl_down_sync", mask, to_bits(value), where);
    const bool inside = exchange.lane + delta <= segment_end(exchange.lane, width);
    return inside ? read_lane<T>(exchange, exchange.lane + delta) : value;
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  std::source_location where = std::source_location::current()) {
    using namespace simt::detail;
    const WarpExchange exchange = wait_for_warp("__shfl_xor_sync", mask, to_bits(value), where);
    // Earlier segments may be read, later ones not: that is what the hardware does.
    const unsigned source = exchange.lane ^ static_cast<unsigned>(lane_mask);
    return source <= segment_end(exchange.lane, width) ? read_lane<T>(exchange, source) : value;
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              std::source_location where = std::source_location::current()) {
    return simt::detail::ballot("__ballot_sync", mask, predicate != 0, where);
}
inline int __any_sync(unsigned mask, int predicate, std::source_location where = std::source_location::current()) {
    return simt::detail::ballot("__any_sync", mask, predicate != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, std::source_location where = std::source_location::current()) {
    return simt::detail::ballot("__all_sync", mask, predicate == 0, where) == 0;
}

// Ends the kernel with an error, as on a GPU.
[[noreturn]] inline void __trap(std::source_location where = std::source_location::current()) {
    simt::detail::trap(where);
}
