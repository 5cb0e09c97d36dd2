// Atomic operations. Threads change only at barriers and warp primitives, so plain reads and writes are atomic here;
// that also means that the emulator cannot find an atomic that is missing. The overloads are CUDA's, no more: 64-bit
// ones take unsigned long long, which uint64_t is not on Linux.
#pragma once

namespace simt::detail {

template <class T, class Update>
T exchange(T* address, const Update& update) {
    const T old = *address;
    *address = update(old);
    return old;
}

}  // namespace simt::detail

// In unsigned arithmetic: on a GPU a sum of ints wraps around.
inline int atomicAdd(int* address, int value) {
    return simt::detail::exchange(
        address, [=](int old) { return static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value)); });
}
inline unsigned atomicAdd(unsigned* address, unsigned value) {
    return simt::detail::exchange(address, [=](unsigned old) { return old + value; });
}
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
    return simt::detail::exchange(address, [=](unsigned long long old) { return old + value; });
}
inline float atomicAdd(float* address, float value) {
    return simt::detail::exchange(address, [=](float old) { return old + value; });
}
inline double atomicAdd(double* address, double value) {
    return simt::detail::exchange(address, [=](double old) { return old + value; });
}

inline int atomicMax(int* address, int value) {
    return simt::detail::exchange(address, [=](int old) { return old > value ? old : value; });
}
inline unsigned atomicMax(unsigned* address, unsigned value) {
    return simt::detail::exchange(address, [=](unsigned old) { return old > value ? old : value; });
}
inline unsigned long long atomicMax(unsigned long long* address, unsigned long long value) {
    return simt::detail::exchange(address, [=](unsigned long long old) { return old > value ? old : value; });
}
inline int atomicMin(int* address, int value) {
    return simt::detail::exchange(address, [=](int old) { return old < value ? old : value; });
}
inline unsigned atomicMin(unsigned* address, unsigned value) {
    return simt::detail::exchange(address, [=](unsigned old) { return old < value ? old : value; });
}

inline int atomicExch(int* address, int value) {
    return simt::detail::exchange(address, [=](int) { return value; });
}
inline unsigned atomicExch(unsigned* address, unsigned value) {
    return simt::detail::exchange(address, [=](unsigned) { return value; });
}
inline float atomicExch(float* address, float value) {
    return simt::detail::exchange(address, [=](float) { return value; });
}

inline unsigned atomicOr(unsigned* address, unsigned value) {
    return simt::detail::exchange(address, [=](unsigned old) { return old | value; });
}
inline unsigned atomicAnd(unsigned* address, unsigned value) {
    return simt::detail::exchange(address, [=](unsigned old) { return old & value; });
}

inline int atomicCAS(int* address, int expected, int value) {
    return simt::detail::exchange(address, [=](int old) { return old == expected ? value : old; });
}
inline unsigned atomicCAS(unsigned* address, unsigned expected, unsigned value) {
    return simt::detail::exchange(address, [=](unsigned old) { return old == expected ? value : old; });
}
inline unsigned long long atomicCAS(unsigned long long* address, unsigned long long expected,
                                    unsigned long long value) {
    return simt::detail::exchange(address, [=](unsigned long long old) { return old == expected ? value : old; });
}

// One thread runs at a time, and sees all that ran before.
inline void __threadfence() {}
inline void __threadfence_block() {}
