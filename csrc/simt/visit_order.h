// In which order the scheduler visits blocks, warps and lanes.
#pragma once

#include <cstdint>
#include <numeric>

#include "launch.h"

namespace simt::detail {

// A walk over 0 … count - 1, each number once: offset, offset + stride, offset + 2·stride, … modulo count, with a
// stride that has no divisor in common with count. It needs no memory, and a grid may have 2^31 blocks.
class Visit {
  public:
    Visit(std::uint64_t count, std::uint64_t offset, std::uint64_t stride)
        : count_(count), index_(offset), stride_(stride), left_(count) {}
    bool done() const { return left_ == 0; }
    std::uint64_t index() const { return index_; }
    void advance() {
        --left_;
        index_ += stride_;
        if (index_ >= count_) index_ -= count_;
    }

  private:
    std::uint64_t count_, index_, stride_, left_;
};

class VisitOrder {
  public:
    VisitOrder(ThreadOrder order, std::uint64_t seed) : order_(order), state_(seed) {}

    Visit visit(std::uint64_t count) {
        switch (order_) {
            case ThreadOrder::forward:
                return {count, 0, 1};
            case ThreadOrder::reverse:
                return {count, count - 1, count - 1};
            case ThreadOrder::shuffled:
                break;
        }
        std::uint64_t stride = 1 + random() % count;
        while (std::gcd(stride, count) != 1) stride = 1 + random() % count;
        return {count, random() % count, stride};
    }

    // Called before every pass over the warps of a block.
    void begin_pass() { may_interrupt_ = order_ == ThreadOrder::shuffled && random() % 2 == 0; }

    // Whether to leave a warp after one warp primitive and go on with another warp. In half of the passes never: some
    // races need one warp to run far ahead, and with an interruption now and then none would.
    bool interrupts() { return may_interrupt_ && random() % 2 == 0; }

    // Whether the next asynchronous copy arrives at once, which shows where it overwrites what is still read, or as
    // late as it may, which shows where nobody waits for it: at once in reverse order, late in forward order, or by
    // chance.
    bool hastens_copy() {
        return order_ == ThreadOrder::reverse || (order_ == ThreadOrder::shuffled && random() % 2 == 0);
    }

  private:
    std::uint64_t random() {  // splitmix64
        state_ += 0x9E3779B97F4A7C15u;
        std::uint64_t bits = state_;
        bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9u;
        bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBu;
        return bits ^ (bits >> 31);
    }

    ThreadOrder order_;
    std::uint64_t state_;
    bool may_interrupt_ = false;
};

}  // namespace simt::detail
