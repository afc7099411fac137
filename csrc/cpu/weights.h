// Weights of neurons [N, C], of any dtype and strides, and the rows of the compute type that the kernels work on.
//
// Layers keep the weights as published checkpoints do, channel after channel: neuron n's lie N elements apart. The
// kernels read a neuron's side by side, in the order in which neurons are worked through. So weights are copied into
// that order anyway, once for each call, and their gradient out of it: a tile at a time, so that either side is read
// and written by whole lines of the cache.
#pragma once

#include "dispatch.h"
#include "images.h"

#include <algorithm>
#include <cstdint>

namespace v1fast {

// Columns channel .. channel + C - 1 of a tensor [N, C or more].
struct WeightColumns {
    int64_t N, C, stride_n, stride_c, channel;
    torch::headeronly::ScalarType dtype;

    WeightColumns(const Tensor& weight, int64_t channel_, int64_t C_)
        : N(weight.size(0)), C(C_), stride_n(weight.stride(0)), stride_c(weight.stride(1)), channel(channel_),
          dtype(weight.scalar_type()) {}

    int64_t offset(int64_t n, int64_t c) const { return n * stride_n + (channel + c) * stride_c; }

    // Whether they are rows of T already, one after the other.
    template <class T>
    bool are_rows() const {
        return dtype == kScalarType<T> && (C == 1 || stride_c == 1) && (N == 1 || stride_n == C);
    }

    static constexpr int64_t kTile = 16; // a line of the cache of float

    // Calls work(n, n1, c, c1) in parallel for tiles of neurons n .. n1 - 1 and columns c .. c1 - 1. Where a neuron's
    // lie side by side, a tile is whole rows.
    template <class Work>
    void for_each_tile(const Work& work) const {
        constexpr int64_t kWorth = 1 << 15; // elements that a thread is worth waking for
        const int64_t width = stride_c == 1 ? std::max<int64_t>(C, 1) : kTile;
        const int64_t grain = std::max<int64_t>(1, kWorth / std::max<int64_t>(1, C * kTile));
        torch::stable::parallel_for(0, (N + kTile - 1) / kTile, grain, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin * kTile; n < std::min(end * kTile, N); n += kTile)
                for (int64_t c = 0; c < C; c += width)
                    work(n, std::min(n + kTile, N), c, std::min(c + width, C));
        });
    }
};

// rows [N, C]: that of neuron n is row place[n].
template <class T>
void read_weights(const Tensor& weight, const WeightColumns& w, const int32_t* place, T* rows) {
    V1FAST_DISPATCH_FLOATING(w.dtype, "weight", [&] {
        const scalar_t* const data = static_cast<const scalar_t*>(weight.const_data_ptr());
        w.for_each_tile([&](int64_t n0, int64_t n1, int64_t c0, int64_t c1) {
            if (w.stride_c == 1) {
                for (int64_t n = n0; n < n1; ++n)
                    for (int64_t c = c0; c < c1; ++c)
                        rows[place[n] * w.C + c] = static_cast<T>(data[w.offset(n, c)]);
                return;
            }
            T tile[WeightColumns::kTile][WeightColumns::kTile];
            for (int64_t c = c0; c < c1; ++c)
                for (int64_t n = n0; n < n1; ++n)
                    tile[c - c0][n - n0] = static_cast<T>(data[w.offset(n, c)]);
            for (int64_t n = n0; n < n1; ++n)
                for (int64_t c = c0; c < c1; ++c)
                    rows[place[n] * w.C + c] = tile[c - c0][n - n0];
        });
    });
}

// The reverse: the rows rounded to the dtype of `weight`, where they belong in it.
template <class T>
void write_weights(const T* rows, const int32_t* place, const WeightColumns& w, Tensor& weight) {
    V1FAST_DISPATCH_FLOATING(w.dtype, "weight", [&] {
        scalar_t* const data = static_cast<scalar_t*>(weight.mutable_data_ptr());
        w.for_each_tile([&](int64_t n0, int64_t n1, int64_t c0, int64_t c1) {
            if (w.stride_c == 1) {
                for (int64_t n = n0; n < n1; ++n)
                    for (int64_t c = c0; c < c1; ++c)
                        data[w.offset(n, c)] = static_cast<scalar_t>(rows[place[n] * w.C + c]);
                return;
            }
            T tile[WeightColumns::kTile][WeightColumns::kTile];
            for (int64_t n = n0; n < n1; ++n)
                for (int64_t c = c0; c < c1; ++c)
                    tile[c - c0][n - n0] = rows[place[n] * w.C + c];
            for (int64_t c = c0; c < c1; ++c)
                for (int64_t n = n0; n < n1; ++n)
                    data[w.offset(n, c)] = static_cast<scalar_t>(tile[c - c0][n - n0]);
        });
    });
}

} // namespace v1fast
