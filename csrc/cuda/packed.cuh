// Sixteen bytes of consecutive channels at a time: how they are read, widened to float32, rounded and written.
//
// A thread always owns the same kPack<T> channels; whether memory lets it move them in one access or only one by one
// (kAligned) changes no arithmetic, so that results do not depend on where a tensor lies.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "edm_fast/dtypes.h"
#include "simt.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace edm_fast::cuda {

template <class T>
inline constexpr int kPack = 16 / int(sizeof(T));

__device__ __forceinline__ float widened(float value) {
    return value;
}
__device__ __forceinline__ float widened(BFloat16 value) {
    return to_float(value);
}
__device__ __forceinline__ float widened(Half value) {
#if defined(__CUDACC__)
    return __half2float(__ushort_as_half(value.bits));
#else
    return to_float(value);
#endif
}

// Rounded to nearest even: the bits of Store<T>, by one instruction where the device has it. NaNs may differ in bits.
template <class T>
__device__ __forceinline__ T narrowed(float value) {
#if defined(__CUDACC__)
    if constexpr (sizeof(T) == sizeof(float)) {
        return value;
    } else if constexpr (std::is_same_v<T, Half>) {
        return {__half_as_ushort(__float2half_rn(value))};
    } else {
        return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
    }
#else
    return Store<T>::from(value);
#endif
}

template <class T>
__device__ __forceinline__ void unpack(const uint4& raw, float (&values)[kPack<T>]) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (sizeof(T) == sizeof(float)) {
            values[i] = __uint_as_float(words[i]);
        } else {
            values[2 * i] = widened(T{uint16_t(words[i])});
            values[2 * i + 1] = widened(T{uint16_t(words[i] >> 16)});
        }
    }
}

template <class T>
__device__ __forceinline__ uint4 pack(const float (&values)[kPack<T>]) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (sizeof(T) == sizeof(float)) {
            words[i] = __float_as_uint(values[i]);
        } else {
            words[i] = narrowed<T>(values[2 * i]).bits | uint32_t(narrowed<T>(values[2 * i + 1]).bits) << 16;
        }
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// The bits of element i of a pack, i known at compile time.
template <class T>
__device__ __forceinline__ T element_of(const uint4& raw, int i) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
    if constexpr (sizeof(T) == sizeof(float)) {
        return __uint_as_float(words[i]);
    } else {
        return {uint16_t(words[i / 2] >> (i % 2 * 16))};
    }
}

template <class T>
__device__ __forceinline__ void set_element(uint4& raw, int i, T value) {
    uint32_t* const words[4] = {&raw.x, &raw.y, &raw.z, &raw.w};
    if constexpr (sizeof(T) == sizeof(float)) {
        *words[i] = __float_as_uint(value);
    } else {
        *words[i / 2] |= uint32_t(value.bits) << (i % 2 * 16);
    }
}

// Elements from `count` on read as 0.
template <class T, bool kAligned>
__device__ __forceinline__ uint4 load_raw(const T* address, int count) {
    if constexpr (kAligned) {
        return *reinterpret_cast<const uint4*>(address);
    } else {
        uint4 raw = make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) {
            if (i < count) set_element(raw, i, address[i]);
        }
        return raw;
    }
}

template <class T, bool kAligned>
__device__ __forceinline__ void store_raw(T* address, int count, const uint4& raw) {
    if constexpr (kAligned) {
#if defined(__CUDACC__)
        // A plain assignment may become four stores.
        __stwb(reinterpret_cast<uint4*>(address), raw);
#else
        *reinterpret_cast<uint4*>(address) = raw;
#endif
    } else {
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) {
            if (i < count) address[i] = element_of<T>(raw, i);
        }
    }
}

// Whether accesses of 16 bytes are possible: all pointers (nullptr is) and all counts of elements.
template <class T>
bool aligned_for_packs(std::initializer_list<const void*> pointers, std::initializer_list<int64_t> counts) {
    for (const void* pointer : pointers) {
        if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return false;
    }
    for (int64_t count : counts) {
        if (count % kPack<T> != 0) return false;
    }
    return true;
}

// Calls body.template operator()<T, kAligned>() for the element type. `aligned` is asked for each type.
template <class Aligned, class Body>
void for_storage(DType dtype, const Aligned& aligned, const Body& body) {
    const auto with_type = [&]<class T>() {
        if (aligned.template operator()<T>()) {
            body.template operator()<T, true>();
        } else {
            body.template operator()<T, false>();
        }
    };
    if (dtype == kFloat16) {
        with_type.template operator()<Half>();
    } else if (dtype == kBFloat16) {
        with_type.template operator()<BFloat16>();
    } else {
        with_type.template operator()<float>();
    }
}

}  // namespace edm_fast::cuda
