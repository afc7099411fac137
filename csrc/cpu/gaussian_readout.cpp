// The Gaussian readout on the CPU. See v1fast/reference/gaussian_readout.py for what it computes.
//
// Neurons are taken in blocks: their noise and positions are made together in vectors, then each reads four rows of
// channels. Every sum over images or neurons has one fixed order, whatever the number of threads.
#include "../gaussian_readout.h"

#include "../bilinear.h"
#include "../philox.h"
#include "images.h"
#include "isa.h"

#include <torch/csrc/stable/library.h>

#include <numeric>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace v1fast {

using torch::headeronly::ScalarType;

constexpr int64_t kBlock = 64;       // neurons located at a time: their state stays in L1
constexpr int64_t kShiftBlock = 256; // neurons whose d_shift is summed before the sum over all

// All operands in the compute type, contiguous. Neurons are worked through in the order of their places in the map, so
// that the rows that one block reads are still in the nearest cache for the next.
template <class T>
struct Operands {
    GaussianReadoutSizes s;
    const int32_t* order;        // [N]: the k-th neuron to work on
    const T* mu;                 // [N, 2], in that order
    const T* sigma;              // [N, sigma_columns], in that order; null: none
    int64_t sigma_columns;       // 4 full, 2 uncorrelated, 1 isotropic
    const int64_t* neuron_index; // [N], in that order; null: no noise to draw
    const T* weight;             // [N, C], in that order
    const T* bias;               // [N], null: none
    const T* shift;              // [B, 2], null: none
    const T* noise;              // [B, N, 2] or, shared, [1, N, 2]; null: none
    const int64_t* seed;         // [1], null: none
    int64_t image_offset;
    bool share_noise, align_corners;

    bool samples() const { return sigma && (noise || seed); }
    // The image whose draws image b of the batch takes.
    int64_t noise_image(int64_t b) const { return share_noise ? 0 : image_offset + b; }
};

// Sums over images that one thread owns for its neurons. Position gradients are summed in double: there are few.
template <class T>
struct NeuronSums {
    T* d_weight;     // [N, C], null: not wanted
    double* d_z;     // [6, N]: d_mu (x, y), then d_z times noise (xx, xy, yx, yy); null: no position gradient wanted
    double* d_shift; // [B, ceil(N / kShiftBlock), 2], null: not wanted
};

// A Philox block serves an even image and the odd one after it. The even one leaves its other words here.
struct OddWords {
    static constexpr int64_t kMost = 1 << 18; // neurons; more are not worth the memory
    std::vector<uint32_t> first, second;      // [n1 - n0]
    int64_t n0 = 0, n1 = 0, block = -1;

    bool hold(int64_t n0_, int64_t n1_, int64_t block_) const { return n0 == n0_ && n1 == n1_ && block == block_; }
    void prepare(int64_t n0_, int64_t n1_) {
        first.resize(static_cast<size_t>(n1_ - n0_));
        second.resize(static_cast<size_t>(n1_ - n0_));
        n0 = n0_, n1 = n1_, block = -1;
    }
};

// The row kernels that one instruction set provides, for one compute type.
template <class T>
struct RowKernels {
    void (*forward_image)(const Operands<T>&, const T* image, const T* zeros, int64_t b, int64_t n0, int64_t n1, T* out,
                          OddWords&);
    void (*backward_neurons)(const Operands<T>&, const T* image, const T* zeros, const T* grad, int64_t b, int64_t n0,
                             int64_t n1, const NeuronSums<T>&, OddWords&);
    void (*backward_image)(const Operands<T>&, const T* grad, int64_t b, T* d_image, OddWords&);
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

// The neurons in the order of the tiles of 4 x 4 pixels that their means lie in.
template <class T>
std::vector<int32_t> order_by_place(const GaussianReadoutSizes& s, const T* mu, bool align_corners) {
    std::vector<int32_t> order(static_cast<size_t>(s.N));
    if (s.N < 2 * kBlock || s.B < 4) { // too little work to gain from it
        std::iota(order.begin(), order.end(), 0);
        return order;
    }
    const auto tile = [&](T position, int64_t size) {
        const PixelMap<T> map(size, align_corners);
        const T pixel = (position + 1) * map.scale + map.offset;
        return pixel > 0 ? static_cast<int64_t>(std::min(pixel, T(size - 1))) / 4 : 0; // NaN: 0
    };
    const int64_t columns = (s.W + 3) / 4;
    std::vector<int32_t> tiles(static_cast<size_t>(s.N));
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
        : order_(order_by_place(s, values(mu), align_corners)), mu_(ordered(values(mu), 2)),
          sigma_(ordered(values(sigma), sigma_columns(sigma))), weight_(ordered(values(weight), s.C)),
          neuron_index_(seed ? ordered_indices(neuron_index) : std::vector<int64_t>()),
          operands{s,
                   order_.data(),
                   mu_.data(),
                   sigma ? sigma_.data() : nullptr,
                   sigma_columns(sigma),
                   neuron_index_.data(),
                   weight_.data(),
                   values(bias),
                   values(shift),
                   values(noise),
                   integers(seed),
                   image_offset,
                   share_noise,
                   align_corners} {}

    // A tensor in the compute type, contiguous; null for none.
    const T* values(const OptionalTensor& tensor) {
        return tensor ? keep(torch::stable::to(*tensor, kScalarType<T>)).template const_data_ptr<T>() : nullptr;
    }

    static int64_t sigma_columns(const OptionalTensor& sigma) {
        return !sigma ? 0 : sigma->dim() == 3 ? 4 : sigma->size(1);
    }

private:
    std::vector<Tensor> kept_;
    std::vector<int32_t> order_;
    std::vector<T> mu_, sigma_, weight_;
    std::vector<int64_t> neuron_index_;

    const Tensor& keep(const Tensor& tensor) { return kept_.emplace_back(torch::stable::contiguous(tensor)); }
    const int64_t* integers(const OptionalTensor& tensor) {
        return tensor ? keep(*tensor).template const_data_ptr<int64_t>() : nullptr;
    }
    std::vector<T> ordered(const T* rows, int64_t columns) const {
        std::vector<T> out(order_.size() * static_cast<size_t>(rows ? columns : 0));
        T* to = out.data();
        if (rows)
            for (int64_t neuron : order_)
                to = std::copy_n(rows + neuron * columns, columns, to);
        return out;
    }
    std::vector<int64_t> ordered_indices(const OptionalTensor& neuron_index) {
        const int64_t* given = integers(neuron_index);
        std::vector<int64_t> out(order_.begin(), order_.end());
        if (given)
            for (int64_t& index : out)
                index = given[index];
        return out;
    }

public:
    const Operands<T> operands; // last: it points to all the others
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
Tensor forward(const Tensor& features, OwnedOperands<T>& owned) {
    const Operands<T>& o = owned.operands;
    const auto [B, C, H, W, N] = o.s;
    Tensor out = torch::stable::new_empty(features, {B, N}, kScalarType<T>);
    if (B * N == 0)
        return out;
    T* out_data = out.mutable_data_ptr<T>();
    const std::vector<T> zeros(static_cast<size_t>(C), T(0));
    const RowKernels<T>& kernels = row_kernels<T>();
    ImageReader<T> images(features);
    images.for_each_chunk([&](int64_t first, int64_t last) {
        // Fewer images than threads: an image's neurons are split, which changes no sum.
        const int64_t threads = torch::stable::get_num_threads();
        const int64_t parts = std::clamp<int64_t>(threads / (last - first), 1, (N + kBlock - 1) / kBlock);
        const int64_t step = ((N + parts - 1) / parts + kBlock - 1) / kBlock * kBlock;
        torch::stable::parallel_for(0, (last - first) * parts, 1, [&](int64_t begin, int64_t end) {
            OddWords odd;
            for (int64_t task = begin; task < end; ++task) {
                const int64_t b = first + task / parts, n0 = task % parts * step, n1 = std::min(n0 + step, N);
                kernels.forward_image(o, images.image(b), zeros.data(), b, n0, n1, out_data, odd);
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
    Tensor d_features = torch::stable::empty_like(features);
    const ImageWriter<T> writer(d_features);
    torch::stable::parallel_for(0, o.s.B, 1, [&](int64_t begin, int64_t end) {
        const std::unique_ptr<T[]> buffer = writer.buffer();
        OddWords odd;
        for (int64_t b = begin; b < end; ++b) {
            row_kernels<T>().backward_image(o, grad, b, writer.begin(b, buffer.get()), odd);
            writer.finish(b, buffer.get());
        }
    });
    return d_features;
}

template <class T>
void neuron_gradients(const Tensor& features, const Operands<T>& o, const T* grad, const NeuronSums<T>& sums) {
    const auto [B, C, H, W, N] = o.s;
    const std::vector<T> zeros(static_cast<size_t>(C), T(0));
    const RowKernels<T>& kernels = row_kernels<T>();
    ImageReader<T> images(features);
    images.for_each_chunk([&](int64_t first, int64_t last) {
        torch::stable::parallel_for(0, (N + kShiftBlock - 1) / kShiftBlock, 1, [&](int64_t begin, int64_t end) {
            OddWords odd;
            for (int64_t b = first; b < last; ++b)
                kernels.backward_neurons(o, images.image(b), zeros.data(), grad, b, begin * kShiftBlock,
                                         std::min(end * kShiftBlock, N), sums, odd);
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
    // the order of d_weight's rows is undone in place
    std::vector<double> d_z(want.position() ? static_cast<size_t>(6 * N) : 0);
    std::vector<double> d_shift(want.shift ? static_cast<size_t>(B * ((N + kShiftBlock - 1) / kShiftBlock) * 2) : 0);
    if (B * N > 0 && (want.position() || want.weight))
        neuron_gradients(features, o, grad,
                         NeuronSums<T>{want.weight ? d_weight.mutable_data_ptr<T>() : nullptr,
                                       want.position() ? d_z.data() : nullptr, want.shift ? d_shift.data() : nullptr});

    if (want.weight)
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
        return forward<T>(features, owned);
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
    Tensor out = torch::stable::new_empty(seed, {images, neurons, 2}, ScalarType::Float);
    float* data = out.mutable_data_ptr<float>();
    const uint64_t key = static_cast<uint64_t>(*seed.const_data_ptr<int64_t>());
    const int64_t* neuron = neuron_index ? neuron_index->const_data_ptr<int64_t>() : nullptr;
    const auto draw = V1FAST_PICK_ISA(draw_normals);
    torch::stable::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            draw(key, neuron, image_offset + b, neurons, data + b * neurons * 2);
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
