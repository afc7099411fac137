// Weights of neurons [N, C], of any dtype and strides, and packed [N, C] in the compute type, as the kernels read them.
//
// Layers keep the weights as published checkpoints do, channel after channel: the weights of one neuron lie N elements
// apart. The kernels need the weights of a neuron to be contiguous, in the order in which neurons are processed.
// Weights are copied into that order anyway, once per call, and their gradient is copied back. Here this is done by
// tiles, so both sides are read and written in whole cache lines.
#pragma once

#include "dispatch.h"
#include "images.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace v1fast {

// Columns channel .. channel + C - 1 of a tensor [N, C or more].
struct WeightColumns {
    int64_t N, C, stride_n, stride_c, channel;
    torch::headeronly::ScalarType dtype;

    WeightColumns(const Tensor& weight, int64_t channel_, int64_t C_)
        : N(weight.size(0)), C(C_), stride_n(weight.stride(0)), stride_c(weight.stride(1)), channel(channel_),
          dtype(weight.scalar_type()) {}

    int64_t offset(int64_t n, int64_t c) const { return n * stride_n + (channel + c) * stride_c; }

    // Whether they are of T and packed already.
    template <class T>
    bool are_packed() const {
        return dtype == kScalarType<T> && (C == 1 || stride_c == 1) && (N == 1 || stride_n == C);
    }

    static constexpr int64_t kNeurons = 32, kChannels = 16; // of a tile: the fastest of those tried, with cold caches

    // Calls work(n, n1, c, c1) in parallel for tiles of neurons n .. n1 - 1 and columns c .. c1 - 1.
    template <class Work>
    void for_each_tile(int64_t channels, const Work& work) const {
        constexpr int64_t kWorth = 1 << 16; // elements that make it worth waking a thread
        const int64_t grain = std::max<int64_t>(1, kWorth / std::max<int64_t>(1, C * kNeurons));
        torch::stable::parallel_for(0, (N + kNeurons - 1) / kNeurons, grain, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin * kNeurons; n < std::min(end * kNeurons, N); n += kNeurons)
                for (int64_t c = 0; c < C; c += channels)
                    work(n, std::min(n + kNeurons, N), c, std::min(c + channels, C));
        });
    }
};

// Calls work(value). The usual value is a compile-time constant.
template <int64_t kUsual, class Work>
void specialised(int64_t value, const Work& work) {
    if (value == kUsual)
        work(std::integral_constant<int64_t, kUsual>());
    else
        work(value);
}

// packed [N, C]: the weights of neuron n are at place[n].
template <class T>
void read_weights(const Tensor& weight, const WeightColumns& w, const int32_t* place, T* packed) {
    V1FAST_DISPATCH_FLOATING(w.dtype, "weight", [&] {
        const scalar_t* const data = static_cast<const scalar_t*>(weight.const_data_ptr());
        if (w.stride_c == 1)
            return w.for_each_tile(w.C, [&](int64_t n0, int64_t n1, int64_t, int64_t) {
                for (int64_t n = n0; n < n1; ++n)
                    std::copy_n(data + w.offset(n, 0), w.C, packed + place[n] * w.C);
            });
        w.for_each_tile(w.kChannels, [&](int64_t n0, int64_t n1, int64_t c0, int64_t c1) {
            T tile[WeightColumns::kChannels][WeightColumns::kNeurons];
            specialised<1>(w.stride_n, [&](auto stride) {
                for (int64_t c = c0; c < c1; ++c)
                    for (int64_t n = 0; n < n1 - n0; ++n)
                        tile[c - c0][n] = static_cast<T>(data[w.offset(n0, c) + n * stride]);
            });
            specialised<WeightColumns::kChannels>(c1 - c0, [&](auto count) {
                for (int64_t n = n0; n < n1; ++n)
                    for (int64_t c = 0; c < count; ++c)
                        packed[place[n] * w.C + c0 + c] = tile[c][n - n0];
            });
        });
    });
}

// The reverse: packed ones, rounded to the dtype of `weight`, to where they belong in it.
template <class T>
void write_weights(const T* packed, const int32_t* place, const WeightColumns& w, Tensor& weight) {
    V1FAST_DISPATCH_FLOATING(w.dtype, "weight", [&] {
        scalar_t* const data = static_cast<scalar_t*>(weight.mutable_data_ptr());
        if (w.stride_c == 1)
            return w.for_each_tile(w.C, [&](int64_t n0, int64_t n1, int64_t, int64_t) {
                for (int64_t n = n0; n < n1; ++n)
                    std::copy_n(packed + place[n] * w.C, w.C, data + w.offset(n, 0));
            });
        w.for_each_tile(w.kChannels, [&](int64_t n0, int64_t n1, int64_t c0, int64_t c1) {
            T tile[WeightColumns::kChannels][WeightColumns::kNeurons];
            specialised<WeightColumns::kChannels>(c1 - c0, [&](auto count) {
                for (int64_t n = n0; n < n1; ++n)
                    for (int64_t c = 0; c < count; ++c)
                        tile[c][n - n0] = packed[place[n] * w.C + c0 + c];
            });
            specialised<1>(w.stride_n, [&](auto stride) {
                for (int64_t c = c0; c < c1; ++c)
                    for (int64_t n = 0; n < n1 - n0; ++n)
                        data[w.offset(n0, c) + n * stride] = static_cast<scalar_t>(tile[c - c0][n]);
            });
        });
    });
}

} // namespace v1fast
