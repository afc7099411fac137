// What every readout of points does on the CPU: out = weight . bilinear(features, position) + bias, and its gradients.
//
// Neurons are taken in blocks, whose noise and positions are made together in vectors. Reading passes go from neuron to
// neuron, each in a few images, its weights in registers; the writing pass goes from cell to cell of an image, its
// gradient in registers. Every sum over images or neurons has one fixed order, whatever the number of threads.
#pragma once

#include "row_kernels.h"

#include <optional>

namespace v1fast {

// Points that are the same in all images, located once, in the order of their cells.
template <class T>
struct FixedPoints {
    Points<T> points;
    CellOrder<T> sorted;

    explicit FixedPoints(const Operands<T>& o) : points(1, o.s.N), sorted(o.s.N) {
        row_kernels<T>().locate_fixed(o, points, sorted);
    }
};

// Images that are read together: where all have their pixels in the same sets of the cache, half as many.
template <class T>
int64_t fixed_images(const ReadoutSizes& s) {
    constexpr int64_t kPeriod = 4096; // bytes from one line to the next of the same set, on common processors
    return s.C * s.H * s.W * static_cast<int64_t>(sizeof(T)) % kPeriod == 0 ? kFixedImages / 2 : kFixedImages;
}

// Calls work(b0, b1, n0, n1) in parallel for groups of images first .. last - 1, with all neurons or, where there are
// fewer groups than threads, a part of them. Vectors of neurons stay whole.
template <class Work>
void for_each_group(int64_t first, int64_t last, int64_t images, int64_t N, const Work& work) {
    const int64_t groups = (last - first + images - 1) / images;
    const int64_t parts = std::clamp<int64_t>(torch::stable::get_num_threads() / groups, 1, (N + 255) / 256);
    const int64_t step = padded((N + parts - 1) / parts);
    torch::stable::parallel_for(0, groups * parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            const int64_t b0 = first + task / parts * images, n0 = task % parts * step;
            work(b0, std::min(b0 + images, last), n0, std::min(n0 + step, N));
        }
    });
}

// [B, N]
template <class T>
Tensor forward(const Tensor& features, const Operands<T>& o) {
    const int64_t B = o.s.B, N = o.s.N;
    Tensor out = torch::stable::new_empty(features, {B, N}, kScalarType<T>);
    if (B * N == 0)
        return out;
    T* out_data = out.mutable_data_ptr<T>();
    const RowKernels<T>& kernels = row_kernels<T>();
    const std::optional<FixedPoints<T>> fixed = o.fixed() ? std::make_optional<FixedPoints<T>>(o) : std::nullopt;
    ImageReader<T> images(features);
    images.for_each_chunk([&](int64_t first, int64_t last) {
        if (fixed)
            for_each_group(first, last, fixed_images<T>(o.s), N, [&](int64_t b0, int64_t b1, int64_t n0, int64_t n1) {
                kernels.forward_fixed(o, images, fixed->sorted, b0, b1, n0, n1, out_data);
            });
        else
            for_each_group(first, last, kImages, N, [&](int64_t b0, int64_t b1, int64_t n0, int64_t n1) {
                Points<T> points(b1 - b0, std::min(kBlock, n1 - n0));
                kernels.forward(o, images, b0, b1, std::min(b1 + kImages, last), n0, n1, out_data, points);
            });
    });
    return out;
}

template <class T>
Tensor features_gradient(const Tensor& features, const Operands<T>& o, const FixedPoints<T>* fixed, const T* grad) {
    const RowKernels<T>& kernels = row_kernels<T>();
    const ImageWriter<T> writer(features);
    torch::stable::parallel_for(0, o.s.B, 2, [&](int64_t begin, int64_t end) { // 2: images that share Philox words
        const std::unique_ptr<T[]> buffer = writer.buffer();
        const int64_t block = fixed ? 0 : std::min(kSorted, o.s.N);
        Points<T> points(1, block);
        CellOrder<T> sorted(block);
        const AlignedArray<T> corner_weight(fixed ? 4 * fixed->sorted.capacity : 0);
        for (int64_t b = begin; b < end; ++b) {
            T* const image = writer.begin(b, buffer.get());
            if (fixed)
                kernels.backward_image_fixed(o, grad, b, image, writer.zeros(), fixed->sorted, corner_weight.get());
            else
                kernels.backward_image(o, grad, b, image, writer.zeros(), points, sorted);
            writer.finish(b, buffer.get());
        }
    });
    return writer.gradient();
}

template <class T>
void neuron_gradients(const Tensor& features, const Operands<T>& o, const FixedPoints<T>* fixed, const T* grad,
                      const NeuronSums<T>& sums) {
    const RowKernels<T>& kernels = row_kernels<T>();
    const int64_t blocks = (o.s.N + kShiftBlock - 1) / kShiftBlock;
    ImageReader<T> images(features);
    images.for_each_chunk([&](int64_t first, int64_t last) {
        torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
            const int64_t n0 = begin * kShiftBlock, n1 = std::min(end * kShiftBlock, o.s.N);
            const int64_t step = fixed ? fixed_images<T>(o.s) : kImages;
            Points<T> points(std::min(kImages, last - first), fixed ? 0 : std::min(kBlock, n1 - n0));
            for (int64_t b0 = first; b0 < last; b0 += step) {
                const int64_t b1 = std::min(b0 + step, last);
                if (fixed)
                    kernels.backward_neurons_fixed(o, images, grad, fixed->points, fixed->sorted, b0, b1, n0, n1, sums);
                else
                    kernels.backward_neurons(o, images, grad, b0, b1, std::min(b1 + step, last), n0, n1, sums, points);
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

// Which gradients of a readout are asked for: of the features, of the means or their square roots of covariances, of
// positions given for each image, and so on.
struct Wanted {
    bool features, mu, sigma, weight, bias, shift, positions;
    bool position() const { return mu || sigma || shift || positions; }
};

// The gradients that are wanted, in the compute type except that of the features.
template <class T>
struct Gradients {
    OptionalTensor features, weight, bias, positions;
    std::vector<double> d_z, d_shift; // as in NeuronSums
};

template <class T>
Gradients<T> backward(const Tensor& features, const Tensor& weight, const Operands<T>& o, const T* grad,
                      const Wanted& want) {
    const int64_t B = o.s.B, C = o.s.C, N = o.s.N;
    Gradients<T> out;
    if (want.weight)
        out.weight = torch::stable::new_zeros(weight, {N, C}, kScalarType<T>);
    if (want.positions)
        out.positions = torch::stable::new_empty(features, {B, N, 2}, kScalarType<T>);
    if (want.position())
        out.d_z.resize(static_cast<size_t>(6 * N));
    if (want.shift)
        out.d_shift.resize(static_cast<size_t>(B * ((N + kShiftBlock - 1) / kShiftBlock) * 2));
    const std::optional<FixedPoints<T>> fixed = o.fixed() ? std::make_optional<FixedPoints<T>>(o) : std::nullopt;
    const FixedPoints<T>* const points = fixed ? &*fixed : nullptr;
    if (B * N > 0 && (want.position() || want.weight))
        neuron_gradients(features, o, points, grad,
                         NeuronSums<T>{want.weight ? out.weight->template mutable_data_ptr<T>() : nullptr,
                                       want.position() ? out.d_z.data() : nullptr,
                                       want.shift ? out.d_shift.data() : nullptr,
                                       want.positions ? out.positions->template mutable_data_ptr<T>() : nullptr});
    if (want.weight && o.reordered)
        undo_order(o, out.weight->template mutable_data_ptr<T>());
    if (want.features)
        out.features = features_gradient(features, o, points, grad);
    if (want.bias)
        out.bias = bias_gradient(features, o, grad);
    return out;
}

// A gradient in the dtype of its operand, or an empty tensor for one that is not wanted.
inline Tensor gradient_or_empty(const OptionalTensor& gradient, const Tensor& like) {
    return gradient ? torch::stable::to(*gradient, like.scalar_type()) : torch::stable::new_empty(like, {0});
}

} // namespace v1fast
