// The Gaussian readout on the CPU. See v1fast/reference/gaussian_readout.py for what it computes.
//
// Neurons are taken in blocks, whose noise and positions are made together in vectors. Reading passes go from neuron to
// neuron, each in a few images, its weights in registers; the writing pass goes from cell to cell of an image, its
// gradient in registers. Every sum over images or neurons has one fixed order, whatever the number of threads.
#include "../gaussian_readout.h"

#include "../bilinear.h"
#include "../philox.h"
#include "images.h"
#include "isa.h"
#include "samples.h"

#include <torch/csrc/stable/library.h>

#include <numeric>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace v1fast {

using torch::headeronly::ScalarType;

constexpr int64_t kBlock = 128;      // neurons that are located at a time for reading
constexpr int64_t kSorted = 8192;    // and for writing: several to a cell, in some 400 KiB
constexpr int64_t kImages = 4;       // images that a neuron reads before the next does: parts of all stay in L2
constexpr int64_t kShiftBlock = 256; // neurons whose d_shift is summed before the sum over all

// All operands in the compute type. Neurons are worked through in the order of their places in the map, so that a block
// reads but a part of it. Arrays of one number per neuron go on to a whole number of vectors, with zeros.
template <class T>
struct Operands {
    GaussianReadoutSizes s;
    const int32_t* order;         // [N]: the k-th neuron to work on
    const T *mu_x, *mu_y;         // [N], in that order
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

    bool samples() const { return sigma[0] && (noise || seed); }
    bool same_for_all_images() const { return !shift && (share_noise || !samples()); }
    // The image whose draws image b of the batch takes.
    int64_t noise_image(int64_t b) const { return share_noise ? 0 : image_offset + b; }
    Places places() const { return {static_cast<int32_t>(s.W), static_cast<int32_t>(s.H)}; }
};

// Sums over images that one thread owns for its neurons. Position gradients are summed in double: there are few.
template <class T>
struct NeuronSums {
    T* d_weight;     // [N, C], null: not wanted
    double* d_z;     // [6, N]: d_mu (x, y), then d_z times noise (xx, xy, yx, yy); null: no position gradient wanted
    double* d_shift; // [B, ceil(N / kShiftBlock), 2], null: not wanted
};

// The row kernels that one instruction set provides, for one compute type: images b0 .. b1 - 1, at most kImages,
// neurons n0 .. n1 - 1; images b1 .. last - 1 are expected next.
template <class T>
struct RowKernels {
    void (*forward)(const Operands<T>&, const ImageReader<T>&, int64_t b0, int64_t b1, int64_t last, int64_t n0,
                    int64_t n1, T* out, Points<T>&);
    void (*backward_neurons)(const Operands<T>&, const ImageReader<T>&, const T* grad, int64_t b0, int64_t b1,
                             int64_t last, int64_t n0, int64_t n1, const NeuronSums<T>&, Points<T>&);
    void (*backward_image)(const Operands<T>&, const T* grad, int64_t b, T* d_image, bool zeros, Points<T>&,
                           CellOrder<T>&);
};

} // namespace v1fast

#define V1FAST_ISA_FILE "gaussian_readout.inc"
#include "foreach_isa.h"

namespace v1fast {
namespace {

template <class T>
const RowKernels<T>& row_kernels() {
    static const RowKernels<T> best = V1FAST_PICK_ISA(row_kernels<T>());
    return best;
}

// The neurons in the order of the tiles of 4 x 4 pixels that their means lie in; empty: in their own, where there is
// too little work to gain from another.
template <class T>
std::vector<int32_t> order_by_place(const GaussianReadoutSizes& s, const T* mu, bool align_corners) {
    if (s.N < 128 || s.B < 4)
        return {};
    const auto tile = [&](T position, int64_t size) {
        const PixelMap<T> map(size, align_corners);
        const T pixel = (position + 1) * map.scale + map.offset;
        return pixel > 0 ? static_cast<int64_t>(std::min(pixel, T(size - 1))) / 4 : 0; // NaN: 0
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

// Operands as the row kernels want them, and what had to be copied for it: of parameter size, never of the features'.
template <class T>
class OwnedOperands {
public:
    OwnedOperands(const GaussianReadoutSizes& s, const Tensor& mu, const OptionalTensor& sigma, const Tensor& weight,
                  const OptionalTensor& bias, const OptionalTensor& shift, const OptionalTensor& noise,
                  const OptionalTensor& seed, const OptionalTensor& neuron_index, int64_t image_offset,
                  bool share_noise, bool align_corners)
        : neurons_(s.N), order_(order_by_place(s, values(mu), align_corners)), zeros_(static_cast<size_t>(s.C)),
          operands{} {
        operands.s = s;
        operands.reordered = !order_.empty();
        if (!operands.reordered) {
            order_.resize(static_cast<size_t>(s.N));
            std::iota(order_.begin(), order_.end(), 0);
        }
        operands.order = order_.data();
        operands.mu_x = column(values(mu), 2, 0);
        operands.mu_y = column(values(mu), 2, 1);
        if (sigma)
            spread(values(sigma), sigma_columns(sigma));
        if (seed)
            operands.neuron_index = indices(integers(neuron_index));
        operands.weight = operands.reordered ? rows(values(weight), s.C) : values(weight);
        operands.zeros = zeros_.data();
        operands.bias = values(bias);
        operands.shift = values(shift);
        operands.noise = values(noise);
        operands.seed = integers(seed);
        operands.image_offset = image_offset;
        operands.share_noise = share_noise;
        operands.align_corners = align_corners;
    }

    // A tensor in the compute type, contiguous; null for none.
    const T* values(const OptionalTensor& tensor) {
        return tensor ? keep(torch::stable::to(*tensor, kScalarType<T>)).template const_data_ptr<T>() : nullptr;
    }

    static int64_t sigma_columns(const OptionalTensor& sigma) { return sigma->dim() == 3 ? 4 : sigma->size(1); }

private:
    int64_t neurons_;
    std::vector<Tensor> kept_;
    std::vector<AlignedArray<T>> copied_;
    std::vector<int32_t> order_;
    std::vector<uint32_t> neuron_index_;

    const Tensor& keep(const Tensor& tensor) { return kept_.emplace_back(torch::stable::contiguous(tensor)); }
    const int64_t* integers(const OptionalTensor& tensor) {
        return tensor ? keep(*tensor).template const_data_ptr<int64_t>() : nullptr;
    }
    // One column of a [N, columns] array, ordered.
    const T* column(const T* data, int64_t columns, int64_t which) {
        T* out = copied_.emplace_back(padded(neurons_)).get();
        std::fill(out + neurons_, out + padded(neurons_), T(0));
        for (int64_t k = 0; k < neurons_; ++k)
            out[k] = data[order_[k] * columns + which];
        return out;
    }
    const T* rows(const T* data, int64_t columns) {
        T* out = copied_.emplace_back(neurons_ * columns).get();
        for (int64_t k = 0; k < neurons_; ++k)
            std::copy_n(data + order_[k] * columns, columns, out + k * columns);
        return out;
    }
    void spread(const T* sigma, int64_t columns) {
        operands.sigma_is_full = columns == 4;
        for (int64_t k : {0, 3})
            operands.sigma[k] = column(sigma, columns, columns == 4 ? k : k == 0 ? 0 : columns - 1);
        for (int64_t k : {1, 2})
            operands.sigma[k] = columns == 4 ? column(sigma, columns, k) : operands.sigma[0];
    }
    const uint32_t* indices(const int64_t* given) {
        neuron_index_.resize(static_cast<size_t>(padded(neurons_)));
        for (int64_t k = 0; k < neurons_; ++k)
            neuron_index_[k] = static_cast<uint32_t>(given ? given[order_[k]] : order_[k]);
        return neuron_index_.data();
    }

    std::vector<T> zeros_;

public:
    Operands<T> operands;
};

bool any_double(std::initializer_list<OptionalTensor> tensors) {
    return std::any_of(tensors.begin(), tensors.end(),
                       [](const OptionalTensor& t) { return t && t->scalar_type() == ScalarType::Double; });
}

ScalarType promote(ScalarType a, ScalarType b) {
    if (a == b)
        return a;
    if (a == ScalarType::Double || b == ScalarType::Double)
        return ScalarType::Double;
    return ScalarType::Float; // also for one bfloat16 and one half
}

template <class T>
Tensor forward(const Tensor& features, const Operands<T>& o) {
    const int64_t B = o.s.B, N = o.s.N;
    Tensor out = torch::stable::new_empty(features, {B, N}, kScalarType<T>);
    if (B * N == 0)
        return out;
    T* out_data = out.mutable_data_ptr<T>();
    ImageReader<T> images(features);
    images.for_each_chunk([&](int64_t first, int64_t last) {
        // Fewer groups of images than threads: an image's neurons are split, which changes no sum.
        const int64_t groups = (last - first + kImages - 1) / kImages;
        const int64_t parts = std::clamp<int64_t>(torch::stable::get_num_threads() / groups, 1, (N + 255) / 256);
        const int64_t step = padded((N + parts - 1) / parts); // vectors of neurons stay within the arrays
        torch::stable::parallel_for(0, groups * parts, 1, [&](int64_t begin, int64_t end) {
            Points<T> points(std::min(kImages, last - first), std::min(kBlock, step));
            for (int64_t task = begin; task < end; ++task) {
                const int64_t b0 = first + task / parts * kImages, b1 = std::min(b0 + kImages, last);
                const int64_t n = task % parts * step;
                row_kernels<T>().forward(o, images, b0, b1, std::min(b1 + kImages, last), n, std::min(n + step, N),
                                         out_data, points);
            }
        });
    });
    return out;
}

struct Wanted {
    bool features, mu, sigma, weight, bias, shift;
    bool position() const { return mu || sigma || shift; }
};

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
Tensor features_gradient(const Tensor& features, const Operands<T>& o, const T* grad) {
    const ImageWriter<T> writer(features);
    torch::stable::parallel_for(0, o.s.B, 2, [&](int64_t begin, int64_t end) { // 2: images that share Philox words
        const std::unique_ptr<T[]> buffer = writer.buffer();
        const int64_t block = std::min(kSorted, o.s.N);
        Points<T> points(1, block);
        CellOrder<T> sorted(block);
        for (int64_t b = begin; b < end; ++b) {
            row_kernels<T>().backward_image(o, grad, b, writer.begin(b, buffer.get()), writer.zeros(), points, sorted);
            writer.finish(b, buffer.get());
        }
    });
    return writer.gradient();
}

template <class T>
void neuron_gradients(const Tensor& features, const Operands<T>& o, const T* grad, const NeuronSums<T>& sums) {
    const int64_t blocks = (o.s.N + kShiftBlock - 1) / kShiftBlock;
    ImageReader<T> images(features);
    images.for_each_chunk([&](int64_t first, int64_t last) {
        torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
            const int64_t n0 = begin * kShiftBlock, n1 = std::min(end * kShiftBlock, o.s.N);
            Points<T> points(std::min(kImages, last - first), std::min(kBlock, n1 - n0));
            for (int64_t b0 = first; b0 < last; b0 += kImages) {
                const int64_t b1 = std::min(b0 + kImages, last);
                row_kernels<T>().backward_neurons(o, images, grad, b0, b1, std::min(b1 + kImages, last), n0, n1, sums,
                                                  points);
            }
        });
    });
}

// sum over images of each neuron's grad
template <class T>
Tensor bias_gradient(const Tensor& like, const Operands<T>& o, const T* grad) {
    const int64_t B = o.s.B, N = o.s.N;
    Tensor d_bias = torch::stable::new_empty(like, {N}, kScalarType<T>);
    T* data = d_bias.mutable_data_ptr<T>();
    torch::stable::parallel_for(0, N, 1024, [&](int64_t begin, int64_t end) {
        std::vector<double> sum(static_cast<size_t>(end - begin));
        for (int64_t b = 0; b < B; ++b)
            for (int64_t n = begin; n < end; ++n)
                sum[n - begin] += grad[b * N + n];
        for (int64_t n = begin; n < end; ++n)
            data[n] = static_cast<T>(sum[n - begin]);
    });
    return d_bias;
}

// [N, columns], each column the sum of some rows of sums [6, N], put back from the working order.
template <class T>
Tensor gather_rows(const Tensor& like, const std::vector<double>& sums, const Operands<T>& o,
                   const std::vector<std::vector<int64_t>>& rows_of_column) {
    const int64_t N = o.s.N, columns = static_cast<int64_t>(rows_of_column.size());
    Tensor out = torch::stable::new_empty(like, {N, columns}, kScalarType<T>);
    T* data = out.mutable_data_ptr<T>();
    for (int64_t n = 0; n < N; ++n)
        for (int64_t k = 0; k < columns; ++k) {
            double sum = 0;
            for (int64_t row : rows_of_column[k])
                sum += sums[row * N + n];
            data[o.order[n] * columns + k] = static_cast<T>(sum);
        }
    return out;
}

// Puts the rows of d_weight, which stand in the working order, back to the neurons' own, in place: cycle by cycle.
template <class T>
void undo_order(const Operands<T>& o, T* d_weight) {
    const int64_t C = o.s.C;
    std::vector<bool> done(static_cast<size_t>(o.s.N));
    std::vector<T> carried(static_cast<size_t>(C));
    for (int64_t start = 0; start < o.s.N; ++start) {
        if (done[start] || o.order[start] == start)
            continue;
        std::copy_n(d_weight + start * C, C, carried.data());
        int64_t k = start;
        do {
            const int64_t neuron = o.order[k];
            std::swap_ranges(carried.begin(), carried.end(), d_weight + neuron * C);
            done[k] = true;
            k = neuron;
        } while (k != start);
    }
}

template <class T>
Tensor sigma_gradient(const Tensor& sigma, const std::vector<double>& sums, const Operands<T>& o) {
    const int64_t columns = OwnedOperands<T>::sigma_columns(sigma);
    if (columns == 4)
        return torch::stable::view(gather_rows<T>(sigma, sums, o, {{2}, {3}, {4}, {5}}), {o.s.N, 2, 2});
    return columns == 2 ? gather_rows<T>(sigma, sums, o, {{2}, {5}}) : gather_rows<T>(sigma, sums, o, {{2, 5}});
}

template <class T>
Tensor shift_gradient(const Tensor& shift, const std::vector<double>& parts, int64_t B) {
    const int64_t blocks = B ? static_cast<int64_t>(parts.size()) / (2 * B) : 0;
    Tensor d_shift = torch::stable::new_empty(shift, {B, 2}, kScalarType<T>);
    T* data = d_shift.mutable_data_ptr<T>();
    for (int64_t b = 0; b < B; ++b)
        for (int64_t axis = 0; axis < 2; ++axis) {
            double sum = 0;
            for (int64_t block = 0; block < blocks; ++block)
                sum += parts[(b * blocks + block) * 2 + axis];
            data[b * 2 + axis] = static_cast<T>(sum);
        }
    return d_shift;
}

template <class T>
Gradients backward(const Tensor& grad_output, const Tensor& features, const Tensor& mu, const OptionalTensor& sigma,
                   const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& shift,
                   OwnedOperands<T>& owned, const Wanted& want) {
    const Operands<T>& o = owned.operands;
    const auto [B, C, H, W, N] = o.s;
    const T* grad = owned.values(grad_output);
    const auto unwanted = [](const Tensor& like) { return torch::stable::new_empty(like, {0}); };

    Tensor d_weight = want.weight ? torch::stable::new_zeros(weight, {N, C}, kScalarType<T>) : unwanted(weight);
    std::vector<double> d_z(want.position() ? static_cast<size_t>(6 * N) : 0);
    std::vector<double> d_shift(want.shift ? static_cast<size_t>(B * ((N + kShiftBlock - 1) / kShiftBlock) * 2) : 0);
    if (B * N > 0 && (want.position() || want.weight))
        neuron_gradients(features, o, grad,
                         NeuronSums<T>{want.weight ? d_weight.mutable_data_ptr<T>() : nullptr,
                                       want.position() ? d_z.data() : nullptr, want.shift ? d_shift.data() : nullptr});

    if (want.weight && o.reordered)
        undo_order(o, d_weight.mutable_data_ptr<T>());

    const auto as = [](const Tensor& value, const Tensor& like) {
        return torch::stable::to(value, like.scalar_type());
    };
    return {want.features ? features_gradient(features, o, grad) : unwanted(features),
            want.mu ? as(gather_rows<T>(mu, d_z, o, {{0}, {1}}), mu) : unwanted(mu),
            want.sigma ? as(sigma_gradient<T>(*sigma, d_z, o), *sigma) : unwanted(mu),
            as(d_weight, weight),
            want.bias ? as(bias_gradient(*bias, o, grad), *bias) : unwanted(mu),
            want.shift ? as(shift_gradient<T>(*shift, d_shift, B), *shift) : unwanted(mu)};
}

Tensor gaussian_readout(const Tensor& features, const Tensor& mu, OptionalTensor sigma, const Tensor& weight,
                        OptionalTensor bias, OptionalTensor shift, OptionalTensor noise, OptionalTensor seed,
                        OptionalTensor neuron_index, int64_t image_offset, bool share_noise, bool align_corners) {
    const auto sizes =
        check_gaussian_readout(features, mu, sigma, weight, bias, shift, noise, seed, neuron_index, share_noise);
    const auto run = [&]<class T>(T) {
        OwnedOperands<T> owned(sizes, mu, sigma, weight, bias, shift, noise, seed, neuron_index, image_offset,
                               share_noise, align_corners);
        return forward<T>(features, owned.operands);
    };
    const Tensor out = any_double({features, mu, sigma, weight, bias, shift, noise}) ? run(double()) : run(float());
    return torch::stable::to(out, promote(features.scalar_type(), weight.scalar_type()));
}

Gradients gaussian_readout_backward(const Tensor& grad_output, const Tensor& features, const Tensor& mu,
                                    OptionalTensor sigma, const Tensor& weight, OptionalTensor bias,
                                    OptionalTensor shift, OptionalTensor noise, OptionalTensor seed,
                                    OptionalTensor neuron_index, int64_t image_offset, bool share_noise,
                                    bool align_corners, std::vector<bool> output_mask) {
    const auto sizes =
        check_gaussian_readout(features, mu, sigma, weight, bias, shift, noise, seed, neuron_index, share_noise);
    check_shape(grad_output, {sizes.B, sizes.N}, "grad_output");
    STD_TORCH_CHECK(output_mask.size() == 6, "gaussian_readout_backward: output_mask: want 6 entries");
    const Wanted want{output_mask[0], output_mask[1],         output_mask[2] && sigma,
                      output_mask[3], output_mask[4] && bias, output_mask[5] && shift};
    const auto run = [&]<class T>(T) {
        OwnedOperands<T> owned(sizes, mu, sigma, weight, bias, shift, noise, seed, neuron_index, image_offset,
                               share_noise, align_corners);
        return backward<T>(grad_output, features, mu, sigma, weight, bias, shift, owned, want);
    };
    return any_double({features, mu, sigma, weight, bias, shift, noise}) ? run(double()) : run(float());
}

Tensor philox_normal_op(const Tensor& seed, int64_t images, int64_t neurons, OptionalTensor neuron_index,
                        int64_t image_offset) {
    check_shape(seed, {1}, "seed");
    STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long, "philox_normal: seed: want int64");
    STD_TORCH_CHECK(images >= 0 && neurons >= 0, "philox_normal: images, neurons: want at least 0");
    if (neuron_index) {
        check_shape(*neuron_index, {neurons}, "neuron_index");
        STD_TORCH_CHECK(neuron_index->scalar_type() == ScalarType::Long, "philox_normal: neuron_index: want int64");
        neuron_index = torch::stable::contiguous(*neuron_index);
    }
    std::vector<uint32_t> index(static_cast<size_t>(neurons));
    for (int64_t n = 0; n < neurons; ++n)
        index[n] = static_cast<uint32_t>(neuron_index ? neuron_index->const_data_ptr<int64_t>()[n] : n);
    Tensor out = torch::stable::new_empty(seed, {images, neurons, 2}, ScalarType::Float);
    float* data = out.mutable_data_ptr<float>();
    const uint64_t key = static_cast<uint64_t>(*seed.const_data_ptr<int64_t>());
    const auto draw = V1FAST_PICK_ISA(draw_normals);
    torch::stable::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            draw(key, index.data(), image_offset + b, neurons, data + b * neurons * 2);
    });
    return out;
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(v1fast, CPU, m) {
    m.impl("gaussian_readout", TORCH_BOX(&gaussian_readout));
    m.impl("gaussian_readout_backward", TORCH_BOX(&gaussian_readout_backward));
    m.impl("philox_normal", TORCH_BOX(&philox_normal_op));
}

} // namespace v1fast
