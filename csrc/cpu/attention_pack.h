// Tokens of a head between the caller's views and the float32 layouts that attention_multiply.h reads.
#pragma once

#include <utility>

#include "attention_multiply.h"
#include "edm_fast/attention.h"

namespace edm_fast::cpu::EDM_FAST_ISA {

// The tokens of one sample and head.
template <class T>
struct Head {
    T* data;
    int64_t token_stride, channel_stride;

    Head(const TokenView& view, int64_t heads, int64_t index)
        : data((T*)view.data + index / heads * view.sample_stride + index % heads * view.head_stride),
          token_stride(view.token_stride),
          channel_stride(view.channel_stride) {}

    T* at(int64_t token, int64_t channel) const { return data + token * token_stride + channel * channel_stride; }
};

template <int... kLane>
EDM_FAST_INLINE Vec every_third(Vec first, Vec second, Vec third, std::integer_sequence<int, kLane...>) {
    // Lane i is element 3i of the run that starts with `first` and `second`; `third` ends with the run's last element.
    const Vec low = shuffle<(3 * kLane < 2 * kLanes ? 3 * kLane : 0)...>(first, second);
    return shuffle<(3 * kLane < 2 * kLanes ? kLane : 3 * kLane - kLanes + 2)...>(low, third);
}

// to[i] = scale · from[i · stride] for i < count, then zeros up to a whole vector.
template <class T>
static void load_channels(const T* from, int64_t stride, int64_t count, float scale, float* to) {
    const Vec factor = splat(scale);
    int64_t i = 0;
    if (stride == 1) {
        for (; i < count; i += kLanes)
            store(to + i, factor * load_some(from + i, int(std::min<int64_t>(count - i, kLanes))));
        return;
    }
    if (stride == 3) {
        for (; i + kLanes <= count; i += kLanes) {
            const T* run = from + 3 * i;
            const Vec lanes = every_third(load(run), load(run + kLanes), load(run + 2 * kLanes - 2),
                                          std::make_integer_sequence<int, kLanes>{});
            store(to + i, factor * lanes);
        }
    }
    for (; i < count; ++i) to[i] = scale * to_float(from[i * stride]);
    for (; i % kLanes != 0; ++i) to[i] = 0;
}

// to[i · stride] = scale · from[i] for i < count.
template <class T>
static void store_channels(const float* from, int64_t count, float scale, T* to, int64_t stride) {
    if (stride == 1) {
        const Vec factor = splat(scale);
        for (int64_t i = 0; i < count; i += kLanes) {
            store_some(to + i, factor * load(from + i), int(std::min<int64_t>(count - i, kLanes)));
        }
        return;
    }
    for (int64_t i = 0; i < count; ++i) to[i * stride] = Store<T>::from(scale * from[i]);
}

// Tokens [first, first + count) as rows of a matrix A, `stride` floats apart.
template <class T>
static void pack_rows(const Head<T>& head, int64_t channels, int64_t first, int64_t count, float scale, float* to,
                      int64_t stride) {
    for (int64_t i = 0; i < count; ++i) {
        load_channels(head.at(first + i, 0), head.channel_stride, channels, scale, to + i * stride);
    }
}

// Tokens [first, first + count) as rows of a matrix B [tokens, channels] in panels.
template <class T>
static void pack_panels(const Head<T>& head, int64_t tokens, int64_t channels, int64_t first, int64_t count,
                        float* to) {
    for (int64_t panel = 0; panel * kPanel < channels; ++panel) {
        for (int64_t token = first; token < first + count; ++token) {
            load_channels(head.at(token, panel * kPanel), head.channel_stride,
                          std::min(channels - panel * kPanel, kPanel), 1.0f,
                          to + panel_offset(tokens, channels, panel, token));
        }
    }
}

template <int kStep, int... kLane>
EDM_FAST_INLINE void exchange(Vec* low, Vec* high, std::integer_sequence<int, kLane...>) {
    const Vec a = *low, b = *high;
    *low = shuffle<(kLane & kStep ? kLanes + kLane - kStep : kLane)...>(a, b);
    *high = shuffle<(kLane & kStep ? kLanes + kLane : kLane + kStep)...>(a, b);
}

template <int kStep>
EDM_FAST_INLINE void transpose(Vec (&rows)[kLanes]) {
    if constexpr (kStep < kLanes) {
        for (int i = 0; i < kLanes; ++i) {
            if ((i & kStep) == 0) {
                exchange<kStep>(&rows[i], &rows[i + kStep], std::make_integer_sequence<int, kLanes>{});
            }
        }
        transpose<2 * kStep>(rows);
    }
}

// Tokens [first, first + count), a part of one panel that starts at a whole vector, as columns of a matrix
// B [channels, tokens] in panels. `buffer` holds kLanes rows of `stride` >= round_up(channels, kLanes) floats.
template <class T>
static void pack_transposed(const Head<T>& head, int64_t tokens, int64_t channels, int64_t first, int64_t count,
                            float* buffer, int64_t stride, float* to) {
    const int64_t panel = first / kPanel, columns = panel_columns(tokens, panel);
    for (int64_t begin = first; begin < first + count; begin += kLanes) {
        const int64_t valid = std::min<int64_t>(first + count - begin, kLanes);
        pack_rows(head, channels, begin, valid, 1.0f, buffer, stride);
        float* column = to + panel_offset(channels, tokens, panel, 0) + begin % kPanel;
        for (int64_t channel = 0; channel < channels; channel += kLanes) {
            Vec rows[kLanes];
            for (int i = 0; i < kLanes; ++i) rows[i] = i < valid ? load(buffer + i * stride + channel) : Vec{};
            transpose<1>(rows);
            for (int i = 0; i < kLanes && channel + i < channels; ++i) store(column + (channel + i) * columns, rows[i]);
        }
    }
}

}  // namespace edm_fast::cpu::EDM_FAST_ISA
