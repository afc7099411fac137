// Operands of the readouts as the channel kernels want them.
#pragma once

#include "../../bilinear.h"
#include "../../sizes.h"
#include "images.h"
#include "samples.h"
#include "weights.h"

#include <numeric>
#include <vector>

namespace v1fast {

using torch::headeronly::ScalarType;

// All operands in the compute type. Neurons are processed in the order of their positions in the map, so a block reads
// only a part of it. Arrays of one number per neuron are padded with zeros to a whole number of vectors.
template <class T>
struct Operands {
    ReadoutSizes s;
    const int32_t* order;         // [N]: the k-th neuron to work on
    const T *mu_x, *mu_y;         // [N], in that order
    const T* positions;           // [B, N, 2], in the neurons' own order, instead of mu; null: none
    const T* sigma[4];            // xx, xy, yx, yy: [N] each, in that order; null: none
    bool sigma_is_full;           // else xy and yx are zero
    const uint32_t* neuron_index; // [N], in that order: the low words
    const T* weight;              // [N, C], in that order
    const T* zeros;               // [C]
    const T* bias;                // [N], null: none
    const T* shift;               // [B, 2], null: none
    const T* noise;               // [B, N, 2] or, shared, [1, N, 2]; null: none
    const int64_t* seed;          // [1], null: none
    int64_t image_offset;
    bool share_noise, align_corners, reordered;
    bool clamp; // clamp positions to [-1, 1], before the shift
    bool add;   // add to the output instead of replacing it

    bool samples() const { return sigma[0] && (noise || seed); }
    bool same_for_all_images() const { return !shift && !positions && (share_noise || !samples()); }
    // Whether it is worth ordering the neurons by cell once for all images.
    bool fixed() const { return s.B > 1 && s.N > 0 && same_for_all_images(); }
    // The image number whose draws are used for image b of the batch.
    int64_t noise_image(int64_t b) const { return share_noise ? 0 : image_offset + b; }
    Places places() const { return {static_cast<int32_t>(s.W), static_cast<int32_t>(s.H)}; }
};

// The neurons, ordered by the tile of 4 x 4 pixels that their mean lies in. Empty: the neurons' own order, where there
// is too little work to gain from another.
template <class T>
std::vector<int32_t> order_by_place(const ReadoutSizes& s, const T* mu, bool align_corners) {
    if (!mu || s.N < 128 || s.B < 4)
        return {};
    const auto tile = [&](T position, int64_t size) {
        const PixelMap<T> map(size, align_corners);
        const T pixel = (position + 1) * map.scale + map.offset;
        // The comparison is in T, but size - 1 is taken as an integer: T(size - 1) may be rounded up to size.
        return !(pixel > 0) ? 0 : (pixel < T(size) ? static_cast<int64_t>(pixel) : size - 1) / 4; // NaN: 0
    };
    const int64_t columns = (s.W + 3) / 4;
    std::vector<int32_t> order(static_cast<size_t>(s.N)), tiles(static_cast<size_t>(s.N));
    std::vector<int32_t> next(static_cast<size_t>(columns * ((s.H + 3) / 4) + 1));
    for (int64_t n = 0; n < s.N; ++n) {
        tiles[n] = static_cast<int32_t>(tile(mu[2 * n + 1], s.H) * columns + tile(mu[2 * n], s.W));
        ++next[tiles[n] + 1];
    }
    std::partial_sum(next.begin(), next.end(), next.begin());
    for (int64_t n = 0; n < s.N; ++n)
        order[next[tiles[n]]++] = static_cast<int32_t>(n);
    return order;
}

// The position of each neuron in the working order: the inverse of that order.
template <class T>
std::vector<int32_t> places_of(const Operands<T>& o) {
    std::vector<int32_t> place(static_cast<size_t>(o.s.N));
    for (int64_t k = 0; k < o.s.N; ++k)
        place[o.order[k]] = static_cast<int32_t>(k);
    return place;
}

// Operands as the channel kernels want them, and what had to be copied for it: of parameter size, never of the
// features'.
template <class T>
class OwnedOperands {
public:
    // mu: [N, 2], or [B, N, 2] for a position in each image. weight: [N, C or more], read from column `channel` on.
    // clamp: limit positions to [-1, 1], before the shift.
    OwnedOperands(const ReadoutSizes& s, const Tensor& mu, const Tensor& weight, int64_t channel,
                  const OptionalTensor& bias, const OptionalTensor& shift, bool align_corners, bool clamp)
        : neurons_(s.N), order_(order_by_place(s, mu.dim() == 2 ? values(mu) : nullptr, align_corners)),
          zeros_(static_cast<size_t>(s.C)), operands{} {
        operands.s = s;
        operands.reordered = !order_.empty();
        if (!operands.reordered) {
            order_.resize(static_cast<size_t>(s.N));
            std::iota(order_.begin(), order_.end(), 0);
        }
        operands.order = order_.data();
        place(mu);
        operands.weight = packed(weight, WeightColumns(weight, channel, s.C));
        operands.zeros = zeros_.data();
        operands.bias = values(bias);
        operands.shift = values(shift);
        operands.align_corners = align_corners;
        operands.clamp = clamp;
    }

    // Positions only, in the neurons' own order: grid [N, 2] or [B, N, 2].
    OwnedOperands(const ReadoutSizes& s, const Tensor& grid, const OptionalTensor& shift, bool align_corners)
        : neurons_(s.N), order_(static_cast<size_t>(s.N)), zeros_(static_cast<size_t>(s.C)), operands{} {
        operands.s = s;
        std::iota(order_.begin(), order_.end(), 0);
        operands.order = order_.data();
        place(grid);
        operands.zeros = zeros_.data();
        operands.shift = values(shift);
        operands.align_corners = align_corners;
    }

    // first: what the draws of the first neuron are counted by, without neuron_index.
    void set_noise(const OptionalTensor& sigma, const OptionalTensor& noise, const OptionalTensor& seed,
                   const OptionalTensor& neuron_index, int64_t first, int64_t image_offset, bool share_noise) {
        if (sigma)
            spread(values(sigma), sigma_columns(sigma));
        if (seed)
            operands.neuron_index = indices(integers(neuron_index), first);
        operands.noise = values(noise);
        operands.seed = integers(seed);
        operands.image_offset = image_offset;
        operands.share_noise = share_noise;
    }

    // A contiguous tensor in the compute type; null for none.
    const T* values(const OptionalTensor& tensor) {
        return tensor ? keep(as_type(*tensor, kScalarType<T>)).template const_data_ptr<T>() : nullptr;
    }

    static int64_t sigma_columns(const OptionalTensor& sigma) { return sigma->dim() == 3 ? 4 : sigma->size(1); }

private:
    int64_t neurons_;
    std::vector<Tensor> kept_;
    std::vector<AlignedArray<T>> copied_;
    std::vector<int32_t> order_;
    std::vector<uint32_t> neuron_index_;

    const Tensor& keep(const Tensor& tensor) { return kept_.emplace_back(as_contiguous(tensor)); }
    const int64_t* integers(const OptionalTensor& tensor) {
        return tensor ? keep(*tensor).template const_data_ptr<int64_t>() : nullptr;
    }
    void place(const Tensor& grid) {
        if (grid.dim() == 2) {
            operands.mu_x = column(values(grid), 2, 0);
            operands.mu_y = column(values(grid), 2, 1);
        } else {
            operands.positions = values(grid);
        }
    }
    // One column of a [N, columns] array, in the working order.
    const T* column(const T* data, int64_t columns, int64_t which) {
        T* out = copied_.emplace_back(padded(neurons_)).get();
        std::fill(out + neurons_, out + padded(neurons_), T(0));
        for (int64_t k = 0; k < neurons_; ++k)
            out[k] = data[order_[k] * columns + which];
        return out;
    }
    // The weights, packed and ordered.
    const T* packed(const Tensor& weight, const WeightColumns& columns) {
        if (!operands.reordered && columns.are_packed<T>())
            return static_cast<const T*>(kept_.emplace_back(weight).const_data_ptr()) + columns.offset(0, 0);
        T* out = copied_.emplace_back(neurons_ * columns.C).get();
        read_weights(weight, columns, places_of(operands).data(), out);
        return out;
    }
    void spread(const T* sigma, int64_t columns) {
        operands.sigma_is_full = columns == 4;
        for (int64_t k : {0, 3})
            operands.sigma[k] = column(sigma, columns, columns == 4 ? k : k == 0 ? 0 : columns - 1);
        for (int64_t k : {1, 2})
            operands.sigma[k] = columns == 4 ? column(sigma, columns, k) : operands.sigma[0];
    }
    const uint32_t* indices(const int64_t* given, int64_t first) {
        neuron_index_.resize(static_cast<size_t>(padded(neurons_)));
        for (int64_t k = 0; k < neurons_; ++k)
            neuron_index_[k] = static_cast<uint32_t>(given ? given[order_[k]] : first + order_[k]);
        return neuron_index_.data();
    }

    std::vector<T> zeros_;

public:
    Operands<T> operands;
};

inline bool any_double(std::initializer_list<OptionalTensor> tensors) {
    return std::any_of(tensors.begin(), tensors.end(),
                       [](const OptionalTensor& t) { return t && t->scalar_type() == ScalarType::Double; });
}

inline ScalarType promote(ScalarType a, ScalarType b) {
    if (a == b)
        return a;
    if (a == ScalarType::Double || b == ScalarType::Double)
        return ScalarType::Double;
    return ScalarType::Float; // also for one bfloat16 and one float16 operand
}

} // namespace v1fast
