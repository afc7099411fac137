// The Gaussian readout on the CPU. See v1fast/reference/gaussian_readout.py for what it computes.
//
// Neurons are taken in blocks: their noise and positions are made together in vectors, then each reads four rows of
// channels. Every sum over images or neurons has one fixed order, whatever the number of threads.
#include "../gaussian_readout.h"

#include "../bilinear.h"
#include "../philox.h"
#include "images.h"

#include <torch/csrc/stable/library.h>

#include <vector>

namespace v1fast {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kBlock = 64;       // neurons located at a time: their state stays in L1
constexpr int64_t kShiftBlock = 256; // neurons whose d_shift is summed before the sum over all

// All operands in the compute type, contiguous.
template <class T>
struct Operands {
    GaussianReadoutSizes s;
    const T* mu;                 // [N, 2]
    const T* sigma;              // [N, sigma_columns], null: none
    int64_t sigma_columns;       // 4 full, 2 uncorrelated, 1 isotropic
    const T* weight;             // [N, C]
    const T* bias;               // [N], null: none
    const T* shift;              // [B, 2], null: none
    const T* noise;              // [B, N, 2] or, shared, [1, N, 2]; null: none
    const int64_t* neuron_index; // [N], null: 0 .. N-1
    const int64_t* seed;         // [1], null: none
    int64_t image_offset;
    bool share_noise, align_corners;

    bool sampled() const { return sigma && (noise || seed); }
};

template <class T>
struct Samples {
    T noise_x[kBlock], noise_y[kBlock];
    T ax[kBlock], ay[kBlock];                         // fractions of the cell
    int32_t x[kBlock], y[kBlock];                     // its lower corner, -2: none inside
    int32_t unclamped_x[kBlock], unclamped_y[kBlock]; // 1: the clamp lets the gradient through
};

template <class T>
V1FAST_INLINE void make_noise(const Operands<T>& o, int64_t b, int64_t n0, int64_t count, Samples<T>& out) {
    if (o.noise) {
        const T* noise = o.noise + ((o.share_noise ? 0 : b * o.s.N) + n0) * 2;
        for (int64_t i = 0; i < count; ++i) {
            out.noise_x[i] = noise[2 * i];
            out.noise_y[i] = noise[2 * i + 1];
        }
        return;
    }
    const int64_t image = o.share_noise ? 0 : o.image_offset + b;
    const uint64_t seed = static_cast<uint64_t>(*o.seed);
    int64_t neuron[kBlock];
    for (int64_t i = 0; i < count; ++i)
        neuron[i] = o.neuron_index ? o.neuron_index[n0 + i] : n0 + i;
    for (int64_t i = 0; i < count; ++i) {
        float x, y;
        philox_normal(seed, neuron[i], image, x, y);
        out.noise_x[i] = x;
        out.noise_y[i] = y;
    }
}

// One coordinate: clamped, shifted, in pixels, split into cell and fraction. A NaN stays a NaN and lies nowhere.
template <class T>
V1FAST_INLINE void locate_axis(const T (&z)[kBlock], T shift, PixelMap<T> map, int64_t size, int64_t count,
                               int32_t (&cell)[kBlock], T (&fraction)[kBlock], int32_t (&unclamped)[kBlock]) {
    for (int64_t i = 0; i < count; ++i) {
        unclamped[i] = z[i] >= T(-1) && z[i] <= T(1);
        const T clamped = z[i] < T(-1) ? T(-1) : z[i] > T(1) ? T(1) : z[i];
        const T pixel = std::fma(clamped + shift + T(1), map.scale, map.offset);
        const T lower = std::floor(pixel);
        fraction[i] = pixel - lower;
        cell[i] = lower_corner(lower, size);
    }
}

// Positions of neurons n0 .. n0 + count - 1 for image b: clamp(mu + A noise, -1, 1) + shift.
template <class T>
V1FAST_INLINE void locate(const Operands<T>& o, int64_t b, int64_t n0, int64_t count, Samples<T>& out) {
    T zx[kBlock], zy[kBlock];
    const T* mu = o.mu + 2 * n0;
    for (int64_t i = 0; i < count; ++i) {
        zx[i] = mu[2 * i];
        zy[i] = mu[2 * i + 1];
    }
    if (o.sampled()) {
        make_noise(o, b, n0, count, out);
        const T* sigma = o.sigma + o.sigma_columns * n0;
        const T *ex = out.noise_x, *ey = out.noise_y;
        if (o.sigma_columns == 4)
            for (int64_t i = 0; i < count; ++i) {
                zx[i] = std::fma(sigma[4 * i + 1], ey[i], std::fma(sigma[4 * i], ex[i], zx[i]));
                zy[i] = std::fma(sigma[4 * i + 3], ey[i], std::fma(sigma[4 * i + 2], ex[i], zy[i]));
            }
        else
            for (int64_t i = 0; i < count; ++i) {
                zx[i] = std::fma(sigma[o.sigma_columns * i], ex[i], zx[i]);
                zy[i] = std::fma(sigma[o.sigma_columns * (i + 1) - 1], ey[i], zy[i]);
            }
    }
    const T shift_x = o.shift ? o.shift[2 * b] : T(0), shift_y = o.shift ? o.shift[2 * b + 1] : T(0);
    locate_axis<T>(zx, shift_x, {o.s.W, o.align_corners}, o.s.W, count, out.x, out.ax, out.unclamped_x);
    locate_axis<T>(zy, shift_y, {o.s.H, o.align_corners}, o.s.H, count, out.y, out.ay, out.unclamped_y);
}

// Calls work(n, count, samples) for the blocks of neurons n0 .. n1.
template <class T, class Work>
V1FAST_INLINE void for_each_block(const Operands<T>& o, int64_t b, int64_t n0, int64_t n1, const Work& work) {
    Samples<T> samples;
    for (int64_t n = n0; n < n1; n += kBlock) {
        const int64_t count = std::min(kBlock, n1 - n);
        locate(o, b, n, count, samples);
        work(n, count, samples);
    }
}

template <class T>
V1FAST_INLINE void forward_image(const Operands<T>& o, const T* image, const T* zeros, int64_t b, int64_t n0,
                                 int64_t n1, T* out) {
    for_each_block(o, b, n0, n1, [&](int64_t n, int64_t count, const Samples<T>& at) __attribute__((always_inline)) {
        for (int64_t i = 0; i < count; ++i) {
            const Corners<const T> corners(image, zeros, at.x[i], at.y[i], o.s.C, o.s.H, o.s.W);
            T w[4];
            corner_weights(at.ax[i], at.ay[i], w);
            const T value = dot_bilinear(corners, w, o.weight + (n + i) * o.s.C, o.s.C);
            out[b * o.s.N + n + i] = o.bias ? value + o.bias[n + i] : value;
        }
    });
}

// Sums over images that one thread owns for its neurons. Position gradients are summed in double: there are few.
template <class T>
struct NeuronSums {
    T* d_weight;     // [N, C], null: not wanted
    double* d_z;     // [6, N]: d_mu (x, y), then d_z times noise (xx, xy, yx, yy); null: no position gradient wanted
    double* d_shift; // [B, ceil(N / kShiftBlock), 2], null: not wanted
};

template <class T>
V1FAST_INLINE void add_position_gradients(const Operands<T>& o, const NeuronSums<T>& sums, int64_t b, int64_t n,
                                          int64_t count, const Samples<T>& at, const T (&gx)[kBlock],
                                          const T (&gy)[kBlock]) {
    const int64_t N = o.s.N;
    double* d_mu = sums.d_z + n;
    for (int64_t i = 0; i < count; ++i) {
        d_mu[i] += at.unclamped_x[i] ? gx[i] : T(0);
        d_mu[N + i] += at.unclamped_y[i] ? gy[i] : T(0);
    }
    if (o.sampled()) {
        double* d_sigma = d_mu + 2 * N;
        for (int64_t i = 0; i < count; ++i) {
            const T zx = at.unclamped_x[i] ? gx[i] : T(0), zy = at.unclamped_y[i] ? gy[i] : T(0);
            d_sigma[i] += zx * at.noise_x[i];
            d_sigma[N + i] += zx * at.noise_y[i];
            d_sigma[2 * N + i] += zy * at.noise_x[i];
            d_sigma[3 * N + i] += zy * at.noise_y[i];
        }
    }
    if (sums.d_shift) {
        const int64_t blocks = (N + kShiftBlock - 1) / kShiftBlock;
        double* part = sums.d_shift + (b * blocks + n / kShiftBlock) * 2;
        for (int64_t i = 0; i < count; ++i) {
            part[0] += gx[i];
            part[1] += gy[i];
        }
    }
}

template <class T, bool kPosition, bool kWeight>
V1FAST_INLINE void backward_neurons(const Operands<T>& o, const T* image, const T* zeros, const T* grad, int64_t b,
                                    int64_t n0, int64_t n1, const NeuronSums<T>& sums) {
    const PixelMap<T> map_x(o.s.W, o.align_corners), map_y(o.s.H, o.align_corners);
    for_each_block(o, b, n0, n1, [&](int64_t n, int64_t count, const Samples<T>& at) __attribute__((always_inline)) {
        T gx[kBlock], gy[kBlock];
        for (int64_t i = 0; i < count; ++i) {
            const Corners<const T> corners(image, zeros, at.x[i], at.y[i], o.s.C, o.s.H, o.s.W);
            const T g = grad[b * o.s.N + n + i], ax = at.ax[i], ay = at.ay[i];
            T w[4], dot[4];
            corner_weights(ax, ay, w);
            T* d_weight = kWeight ? sums.d_weight + (n + i) * o.s.C : nullptr;
            dot_bilinear_backward<T, kPosition, kWeight>(corners, w, o.weight + (n + i) * o.s.C, g, o.s.C, d_weight,
                                                         dot);
            if constexpr (kPosition) {
                gx[i] = g * map_x.scale * ((dot[1] - dot[0]) * (T(1) - ay) + (dot[3] - dot[2]) * ay);
                gy[i] = g * map_y.scale * ((dot[2] - dot[0]) * (T(1) - ax) + (dot[3] - dot[1]) * ax);
            }
        }
        if constexpr (kPosition)
            add_position_gradients(o, sums, b, n, count, at, gx, gy);
    });
}

template <class T>
V1FAST_INLINE void backward_image(const Operands<T>& o, const T* grad, int64_t b, T* d_image) {
    for_each_block(o, b, 0, o.s.N, [&](int64_t n, int64_t count, const Samples<T>& at) __attribute__((always_inline)) {
        for (int64_t i = 0; i < count; ++i) {
            const Corners<T> corners(d_image, d_image, at.x[i], at.y[i], o.s.C, o.s.H, o.s.W);
            T w[4];
            corner_weights(at.ax[i], at.ay[i], w);
            scatter_bilinear(corners, w, o.weight + (n + i) * o.s.C, grad[b * o.s.N + n + i], o.s.C);
        }
    });
}

// The compiled entry points: one set of clones for each compute type.
#define V1FAST_ENTRY_POINTS(T)                                                                                         \
    V1FAST_CLONES void forward_image_entry(const Operands<T>& o, const T* image, const T* zeros, int64_t b,            \
                                           int64_t n0, int64_t n1, T* out) {                                           \
        forward_image(o, image, zeros, b, n0, n1, out);                                                                \
    }                                                                                                                  \
    V1FAST_CLONES void backward_neurons_entry(const Operands<T>& o, const T* image, const T* zeros, const T* grad,     \
                                              int64_t b, int64_t n0, int64_t n1, const NeuronSums<T>& sums) {          \
        if (sums.d_z && sums.d_weight)                                                                                 \
            backward_neurons<T, true, true>(o, image, zeros, grad, b, n0, n1, sums);                                   \
        else if (sums.d_z)                                                                                             \
            backward_neurons<T, true, false>(o, image, zeros, grad, b, n0, n1, sums);                                  \
        else                                                                                                           \
            backward_neurons<T, false, true>(o, image, zeros, grad, b, n0, n1, sums);                                  \
    }                                                                                                                  \
    V1FAST_CLONES void backward_image_entry(const Operands<T>& o, const T* grad, int64_t b, T* d_image) {              \
        backward_image(o, grad, b, d_image);                                                                           \
    }
V1FAST_ENTRY_POINTS(float)
V1FAST_ENTRY_POINTS(double)

V1FAST_CLONES void draw_normals_entry(uint64_t seed, const int64_t* neuron, int64_t image, int64_t N, float* out) {
    for (int64_t n = 0; n < N; ++n)
        philox_normal(seed, neuron ? neuron[n] : n, image, out[2 * n], out[2 * n + 1]);
}

// Operands as given, and copies of those that were not contiguous in the compute type. Copies are of parameter size.
template <class T>
class OwnedOperands {
public:
    OwnedOperands(const GaussianReadoutSizes& sizes, const Tensor& mu, const OptionalTensor& sigma,
                  const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& shift,
                  const OptionalTensor& noise, const OptionalTensor& seed, const OptionalTensor& neuron_index,
                  int64_t image_offset, bool share_noise, bool align_corners)
        : operands{sizes,        values(mu),    values(sigma), sigma_columns(sigma),   values(weight),
                   values(bias), values(shift), values(noise), integers(neuron_index), integers(seed),
                   image_offset, share_noise,   align_corners} {}

    // The same for a tensor that comes later, such as the gradient of the output.
    const T* values(const OptionalTensor& tensor) {
        return tensor ? keep(torch::stable::to(*tensor, kScalarType<T>)).template const_data_ptr<T>() : nullptr;
    }

    static int64_t sigma_columns(const OptionalTensor& sigma) {
        return !sigma ? 0 : sigma->dim() == 3 ? 4 : sigma->size(1);
    }

private:
    std::vector<Tensor> kept_;

    const int64_t* integers(const OptionalTensor& tensor) {
        return tensor ? keep(*tensor).template const_data_ptr<int64_t>() : nullptr;
    }
    const Tensor& keep(const Tensor& tensor) { return kept_.emplace_back(torch::stable::contiguous(tensor)); }

public:
    const Operands<T> operands; // after kept_, which its initialiser fills
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
    ImageReader<T> images(features);
    images.for_each_chunk([&](int64_t first, int64_t last) {
        // Fewer images than threads: an image's neurons are split, which changes no sum.
        const int64_t threads = torch::stable::get_num_threads();
        const int64_t parts = std::clamp<int64_t>(threads / (last - first), 1, (N + kBlock - 1) / kBlock);
        const int64_t step = ((N + parts - 1) / parts + kBlock - 1) / kBlock * kBlock;
        torch::stable::parallel_for(0, (last - first) * parts, 1, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t b = first + task / parts, n0 = task % parts * step, n1 = std::min(n0 + step, N);
                forward_image_entry(o, images.image(b), zeros.data(), b, n0, n1, out_data);
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
        for (int64_t b = begin; b < end; ++b) {
            backward_image_entry(o, grad, b, writer.begin(b, buffer.get()));
            writer.finish(b, buffer.get());
        }
    });
    return d_features;
}

template <class T>
void neuron_gradients(const Tensor& features, const Operands<T>& o, const T* grad, const NeuronSums<T>& sums) {
    const auto [B, C, H, W, N] = o.s;
    const std::vector<T> zeros(static_cast<size_t>(C), T(0));
    ImageReader<T> images(features);
    images.for_each_chunk([&](int64_t first, int64_t last) {
        torch::stable::parallel_for(0, (N + kShiftBlock - 1) / kShiftBlock, 1, [&](int64_t begin, int64_t end) {
            for (int64_t b = first; b < last; ++b)
                backward_neurons_entry(o, images.image(b), zeros.data(), grad, b, begin * kShiftBlock,
                                       std::min(end * kShiftBlock, N), sums);
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

// [N, columns] from the double sums [6, N] that start at the given rows.
template <class T>
Tensor gather_rows(const Tensor& like, const std::vector<double>& sums, int64_t N,
                   const std::vector<std::vector<int64_t>>& rows_of_column) {
    const int64_t columns = static_cast<int64_t>(rows_of_column.size());
    Tensor out = torch::stable::new_empty(like, {N, columns}, kScalarType<T>);
    T* data = out.mutable_data_ptr<T>();
    for (int64_t n = 0; n < N; ++n)
        for (int64_t k = 0; k < columns; ++k) {
            double sum = 0;
            for (int64_t row : rows_of_column[k])
                sum += sums[row * N + n];
            data[n * columns + k] = static_cast<T>(sum);
        }
    return out;
}

template <class T>
Tensor sigma_gradient(const Tensor& sigma, const std::vector<double>& sums, int64_t N) {
    const int64_t columns = OwnedOperands<T>::sigma_columns(sigma);
    if (columns == 4)
        return torch::stable::view(gather_rows<T>(sigma, sums, N, {{2}, {3}, {4}, {5}}), {N, 2, 2});
    return columns == 2 ? gather_rows<T>(sigma, sums, N, {{2}, {5}}) : gather_rows<T>(sigma, sums, N, {{2, 5}});
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

    const auto as = [](const Tensor& value, const Tensor& like) {
        return torch::stable::to(value, like.scalar_type());
    };
    return {want.features ? features_gradient(features, o, grad) : unwanted(features),
            want.mu ? as(gather_rows<T>(mu, d_z, N, {{0}, {1}}), mu) : unwanted(mu),
            want.sigma ? as(sigma_gradient<T>(*sigma, d_z, N), *sigma) : unwanted(mu),
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

Tensor draw_normals(const Tensor& seed, int64_t images, int64_t neurons, OptionalTensor neuron_index,
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
    torch::stable::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            draw_normals_entry(key, neuron, image_offset + b, neurons, data + b * neurons * 2);
    });
    return out;
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(v1fast, CPU, m) {
    m.impl("gaussian_readout", TORCH_BOX(&gaussian_readout));
    m.impl("gaussian_readout_backward", TORCH_BOX(&gaussian_readout_backward));
    m.impl("philox_normal", TORCH_BOX(&draw_normals));
}

} // namespace v1fast
