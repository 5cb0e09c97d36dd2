// Copies that take their time, and what tensor cores do: matrices between shared memory and the registers of a warp,
// and their products. The places of elements in registers are those of the PTX manual.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>

#include "sync.h"

namespace simt {

// Sixteen bytes for shared memory, of which the first `bytes` come from `source` and the rest are 0. They arrive at the
// latest when the thread waits for the group that the copy is in: just then in forward order, at once in reverse order.
void copy_async(void* destination, const void* source, int bytes);
// Ends a group of copies of the thread.
void commit_copies();
// Waits until at most `pending` of the thread's last groups are under way.
void wait_for_copies(int pending);

namespace detail {

// Two 16-bit elements, the first in the lower half.
inline std::uint32_t word_at(const void* address) {
    std::uint32_t word;
    std::memcpy(&word, address, sizeof(word));
    return word;
}

}  // namespace detail

// Four matrices of 8x8 elements of 16 bits. Lane i gives the address of row i % 8 of matrix i / 8, and gets of each
// matrix the elements 2 (i % 4) and 2 (i % 4) + 1 of row i / 4.
inline void load_matrices(std::uint32_t (&registers)[4], const void* row,
                          std::source_location where = std::source_location::current()) {
    const detail::WarpExchange exchange =
        detail::wait_for_warp("load_matrices", 0xFFFFFFFFu, reinterpret_cast<std::uintptr_t>(row), where);
    for (unsigned matrix = 0; matrix < 4; ++matrix) {
        const std::uintptr_t start = exchange.published[8 * matrix + exchange.lane / 4];
        registers[matrix] = detail::word_at(reinterpret_cast<const unsigned char*>(start) + exchange.lane % 4 * 4);
    }
    // Nobody goes on, and may write there, before all have read.
    detail::wait_for_warp("load_matrices", 0xFFFFFFFFu, 0, where);
}

// sum [16, 8] += a [16, 16] · b [16, 8] for elements of 16 bits, which `widened` turns into float. With g = lane / 4
// and t = lane % 4 a lane has rows g and g + 8 of a, in each elements 2t, 2t + 1 and 2t + 8, 2t + 9: a[0] is of row g,
// a[1] of g + 8, a[2] and a[3] the further ones; of column g of b elements 2t, 2t + 1 and 2t + 8, 2t + 9; and of sum
// row g, columns 2t and 2t + 1, and then the same of row g + 8.
template <class Widened>
void multiply_add(float (&sum)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], const Widened& widened,
                  std::source_location where = std::source_location::current()) {
    using detail::MatrixElements;
    MatrixElements& mine = detail::next_elements();
    const auto widen = [&](std::uint32_t word, float* pair) {
        pair[0] = widened(static_cast<std::uint16_t>(word));
        pair[1] = widened(static_cast<std::uint16_t>(word >> 16));
    };
    for (unsigned i = 0; i < 4; ++i) widen(a[i], mine.a + 2 * i);
    for (unsigned i = 0; i < 2; ++i) widen(b[i], mine.b + 2 * i);
    const detail::WarpExchange exchange =
        detail::wait_for_warp("multiply_add", 0xFFFFFFFFu, reinterpret_cast<std::uintptr_t>(&mine), where);
    const auto of = [&](unsigned lane) -> const MatrixElements& {
        return *reinterpret_cast<const MatrixElements*>(static_cast<std::uintptr_t>(exchange.published[lane]));
    };
    const unsigned row = exchange.lane / 4, pair = exchange.lane % 4;
    for (unsigned owner = 0; owner < 4; ++owner) {
        const MatrixElements& of_row = of(4 * row + owner);
        const MatrixElements& first = of(8 * pair + owner);
        const MatrixElements& second = of(8 * pair + 4 + owner);
        // Elements 2 owner, 2 owner + 1, and those 8 further.
        for (unsigned i = 0; i < 4; ++i) {
            const float upper = of_row.a[i / 2 * 4 + i % 2], lower = of_row.a[i / 2 * 4 + 2 + i % 2];
            sum[0] += upper * first.b[i];
            sum[1] += upper * second.b[i];
            sum[2] += lower * first.b[i];
            sum[3] += lower * second.b[i];
        }
    }
}

}  // namespace simt
