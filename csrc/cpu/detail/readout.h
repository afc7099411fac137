// What every readout of points does on the CPU: out = weight . bilinear(features, position) + bias, and its gradients.
//
// Neurons are processed in blocks. The noise and positions of a block are computed together, in vectors. Reading passes
// go from neuron to neuron, each in a few images, with the neuron's weights in registers. The writing pass goes from
// cell to cell of an image, with the cell's gradient in registers. Every sum over images or neurons has one fixed
// order, whatever the number of threads.
#pragma once

#include "channel_kernels.h"

#include <deque>
#include <optional>

namespace v1fast {

// Points that are the same in all images. They are located once, in the order of their cells.
template <class T>
struct FixedPoints {
    Points<T> points;
    CellOrder<T> sorted;

    explicit FixedPoints(const Operands<T>& o) : points(1, o.s.N), sorted(o.s.N) {
        channel_kernels<T>().locate_fixed(o, points, sorted);
    }
};

// How many images are read together: half as many where all images map their pixels to the same sets of the cache.
template <class T>
int64_t fixed_images(const ReadoutSizes& s) {
    constexpr int64_t kPeriod = 4096; // distance in bytes of two lines of the same set, on common processors
    return s.C * s.H * s.W * static_cast<int64_t>(sizeof(T)) % kPeriod == 0 ? kFixedImages / 2 : kFixedImages;
}

// Calls work(b0, b1, n0, n1) in parallel for groups of images first .. last - 1. Each call has all neurons, or some of
// them if there are fewer groups than threads. Vectors of neurons are not split.
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

// One map that neurons read, and how they read it.
template <class T>
class Level {
    OwnedOperands<T> owned_;
    std::optional<FixedPoints<T>> fixed_;

public:
    const Operands<T>& o;

    explicit Level(OwnedOperands<T> owned) : owned_(std::move(owned)), o(owned_.operands) {
        if (o.fixed())
            fixed_.emplace(o);
    }

    // Images first .. last - 1, out [B, N].
    void forward(const ImageReader<T>& images, int64_t first, int64_t last, T* out) const {
        const ChannelKernels<T>& kernels = channel_kernels<T>();
        if (fixed_)
            for_each_block(first, last, [&](int64_t b0, int64_t b1, int64_t n0, int64_t n1) {
                kernels.forward_fixed(o, images, fixed_->sorted, b0, b1, n0, n1, out);
            });
        else
            for_each_group(first, last, kImages, o.s.N, [&](int64_t b0, int64_t b1, int64_t n0, int64_t n1) {
                Points<T> points(b1 - b0, std::min(kBlock, n1 - n0));
                kernels.forward(o, images, b0, b1, std::min(b1 + kImages, last), n0, n1, out, points);
            });
    }

    // Calls work(b0, b1, n0, n1) in parallel for blocks of neurons, one group of images after another. The weights of a
    // block stay in the second-level cache.
    template <class Work>
    void for_each_block(int64_t first, int64_t last, const Work& work) const {
        constexpr int64_t kWeightBytes = 256 << 10;
        const int64_t images = fixed_images<T>(o.s), N = o.s.N;
        const int64_t most = padded(std::max<int64_t>(1, kWeightBytes / (o.s.C * static_cast<int64_t>(sizeof(T)))));
        const int64_t step =
            std::min(most, padded((N + torch::stable::get_num_threads() - 1) / torch::stable::get_num_threads()));
        torch::stable::parallel_for(0, (N + step - 1) / step, 1, [&](int64_t begin, int64_t end) {
            for (int64_t n0 = begin * step; n0 < std::min(end * step, N); n0 += step)
                for (int64_t b0 = first; b0 < last; b0 += images)
                    work(b0, std::min(b0 + images, last), n0, std::min(n0 + step, N));
        });
    }

    // Adds the contributions of images first .. last - 1.
    void add_neuron_gradients(const ImageReader<T>& images, int64_t first, int64_t last, const T* grad,
                              const NeuronSums<T>& sums) const {
        const ChannelKernels<T>& kernels = channel_kernels<T>();
        const int64_t blocks = (o.s.N + kShiftBlock - 1) / kShiftBlock;
        torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
            const int64_t n0 = begin * kShiftBlock, n1 = std::min(end * kShiftBlock, o.s.N);
            const int64_t step = fixed_ ? fixed_images<T>(o.s) : kImages;
            Points<T> points(std::min(kImages, last - first), fixed_ ? 0 : std::min(kBlock, n1 - n0));
            for (int64_t b0 = first; b0 < last; b0 += step) {
                const int64_t b1 = std::min(b0 + step, last);
                if (fixed_)
                    kernels.backward_neurons_fixed(o, images, grad, fixed_->points, fixed_->sorted, b0, b1, n0, n1,
                                                   sums);
                else
                    kernels.backward_neurons(o, images, grad, b0, b1, std::min(b1 + step, last), n0, n1, sums, points);
            }
        });
    }

    // The memory that one thread needs to write gradients of images.
    struct Workspace {
        Points<T> points;
        CellOrder<T> sorted;
        AlignedArray<T> corner_weight;
        explicit Workspace(const Level& level)
            : points(1, level.fixed_ ? 0 : std::min(kSorted, level.o.s.N)), sorted(points.capacity),
              corner_weight(level.fixed_ ? 4 * level.fixed_->sorted.capacity : 0) {}
    };

    void write_image_gradient(const T* grad, int64_t b, const Canvas<T>& canvas, Workspace& workspace) const {
        if (fixed_)
            channel_kernels<T>().backward_image_fixed(o, grad, b, canvas, fixed_->sorted,
                                                      workspace.corner_weight.get());
        else
            channel_kernels<T>().backward_image(o, grad, o.weight, b, canvas, workspace.points, workspace.sorted);
    }
};

// Images first .. last - 1 of the average pooling of maps of `from` size. The memory begins with image `first`.
template <class T>
ImageReader<T> pool(const ImageReader<T>& maps, const ReadoutSizes& from, int64_t kernel, int64_t first, int64_t last,
                    T* memory) {
    const ImageLayout<T> to(from.B, from.C, from.H / kernel, from.W / kernel);
    torch::stable::parallel_for(first, last, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            channel_kernels<T>().pool(maps.image(b), from.C, from.H, from.W, kernel, memory + (b - first) * to.size());
    });
    return {memory - first * to.size(), to};
}

// A feature map and its successive average poolings, with the operands that are read in each.
template <class T>
class Pyramid {
    std::deque<Level<T>> levels_; // a deque, because a Level must not move
    int64_t kernel_;

public:
    explicit Pyramid(int64_t kernel = 1) : kernel_(kernel) {}

    void add(OwnedOperands<T> owned) { levels_.emplace_back(std::move(owned)); }
    const std::deque<Level<T>>& levels() const { return levels_; }
    const ReadoutSizes& sizes() const { return levels_.front().o.s; }

    // Calls work(level, maps, first, last) for each level and consecutive ranges of images. The poolings are computed
    // or given, one level after another.
    template <class Work>
    void for_each_map(const Tensor& features, const T* given, const Work& work) const {
        ImageReader<T> images(features);
        std::vector<AlignedArray<T>> memory;
        for (size_t l = 1; l < levels_.size(); ++l)
            memory.emplace_back(given ? 0 : images.chunk() * image_size(l));
        images.for_each_chunk([&](int64_t first, int64_t last) {
            const ImageReader<T>* finer = &images;
            std::deque<ImageReader<T>> pooled;
            const T* rest = given;
            for (size_t l = 0; l < levels_.size(); ++l) {
                if (l > 0 && given)
                    finer = &pooled.emplace_back(rest, layout(l));
                else if (l > 0)
                    finer = &pooled.emplace_back(
                        pool(*finer, levels_[l - 1].o.s, kernel_, first, last, memory[l - 1].get()));
                if (l > 0 && given)
                    rest += sizes().B * image_size(l);
                work(l, *finer, first, last);
            }
        });
    }

    // [B, N]
    Tensor forward(const Tensor& features, const T* pooled = nullptr) const {
        const auto [B, C, H, W, N] = sizes();
        Tensor out = torch::stable::new_empty(features, {B, N}, kScalarType<T>);
        T* const data = out.mutable_data_ptr<T>();
        if (B * N > 0)
            for_each_map(features, pooled, [&](size_t l, const ImageReader<T>& maps, int64_t first, int64_t last) {
                levels_[l].forward(maps, first, last, data);
            });
        return out;
    }

    Tensor features_gradient(const Tensor& features, const T* grad) const {
        const ImageWriter<T> writer(features);
        // 2: images that share Philox words
        torch::stable::parallel_for(0, sizes().B, 2, [&](int64_t begin, int64_t end) {
            const std::unique_ptr<T[]> buffer = writer.buffer();
            std::deque<typename Level<T>::Workspace> workspaces;
            std::vector<AlignedArray<T>> pooled;
            for (size_t l = 0; l < levels_.size(); ++l) {
                workspaces.emplace_back(levels_[l]);
                pooled.emplace_back(l > 0 ? image_size(l) : 0);
            }
            for (int64_t b = begin; b < end; ++b) {
                Canvas<T> canvas{};
                for (size_t l = levels_.size(); l-- > 0;) {
                    canvas.image = l > 0 ? pooled[l].get() : writer.begin(b, buffer.get());
                    canvas.zeros = l == 0 && writer.zeros();
                    levels_[l].write_image_gradient(grad, b, canvas, workspaces[l]);
                    canvas = {nullptr, false, canvas.image, levels_[l].o.s.H, levels_[l].o.s.W, kernel_};
                }
                writer.finish(b, buffer.get());
            }
        });
        return writer.gradient();
    }

private:
    int64_t image_size(size_t level) const {
        const ReadoutSizes& s = levels_[level].o.s;
        return s.C * s.H * s.W;
    }

    ImageLayout<T> layout(size_t level) const {
        const ReadoutSizes& s = levels_[level].o.s;
        return {s.B, s.C, s.H, s.W};
    }
};

// The sum of each neuron's grad over images.
template <class T>
Tensor bias_gradient(const Tensor& like, int64_t B, int64_t N, const T* grad) {
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

// [N, columns]. Each column is the sum of some rows of sums [6, N].
template <class T>
Tensor pick_sums(const Tensor& like, const std::vector<double>& sums, int64_t N,
                 const std::vector<std::vector<int64_t>>& terms) {
    const int64_t columns = static_cast<int64_t>(terms.size());
    Tensor out = torch::stable::new_empty(like, {N, columns}, kScalarType<T>);
    T* data = out.mutable_data_ptr<T>();
    for (int64_t n = 0; n < N; ++n)
        for (int64_t k = 0; k < columns; ++k) {
            double sum = 0;
            for (int64_t row : terms[k])
                sum += sums[row * N + n];
            data[n * columns + k] = static_cast<T>(sum);
        }
    return out;
}

template <class T>
Tensor sigma_gradient(const Tensor& sigma, const std::vector<double>& sums, int64_t N) {
    const int64_t columns = OwnedOperands<T>::sigma_columns(sigma);
    if (columns == 4)
        return torch::stable::view(pick_sums<T>(sigma, sums, N, {{2}, {3}, {4}, {5}}), {N, 2, 2});
    return columns == 2 ? pick_sums<T>(sigma, sums, N, {{2}, {5}}) : pick_sums<T>(sigma, sums, N, {{2, 5}});
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

// Which gradients of a readout are requested: of the features, of the means or the square roots of their covariances,
// of positions given for each image, and so on.
struct Wanted {
    bool features, mu, sigma, weight, bias, shift, positions;
    bool position() const { return mu || sigma || shift || positions; }
};

// The requested gradients, in the compute type. Those of features and weights have the dtype and layout of their
// operands.
template <class T>
struct Gradients {
    OptionalTensor features, weight, bias, positions;
    std::vector<double> d_z, d_shift; // as in NeuronSums, in the neurons' own order
};

// For the neurons of all levels: puts the sums of a level back from its working order and adds them.
template <class T>
void collect(const Operands<T>& o, const std::vector<double>& d_z, std::vector<double>& total) {
    for (size_t row = 0; row < d_z.size() / static_cast<size_t>(o.s.N); ++row)
        for (int64_t n = 0; n < o.s.N; ++n)
            total[row * o.s.N + o.order[n]] += d_z[row * o.s.N + n];
}

template <class T>
void neuron_gradients(const Tensor& features, const Pyramid<T>& pyramid, const T* pooled, const T* grad,
                      const Wanted& want, Gradients<T>& out) {
    const auto [B, C, H, W, N] = pyramid.sizes();
    const size_t levels = pyramid.levels().size();
    std::vector<std::vector<double>> d_z(levels);
    std::vector<Tensor> d_weight; // packed, in the working order
    for (size_t l = 0; l < levels; ++l) {
        d_z[l].resize(out.d_z.size());
        if (want.weight)
            d_weight.push_back(torch::stable::new_zeros(*out.weight, {N, C}, kScalarType<T>));
    }
    pyramid.for_each_map(features, pooled, [&](size_t l, const ImageReader<T>& maps, int64_t first, int64_t last) {
        pyramid.levels()[l].add_neuron_gradients(
            maps, first, last, grad,
            {want.weight ? d_weight[l].template mutable_data_ptr<T>() : nullptr,
             want.position() ? d_z[l].data() : nullptr, want.shift ? out.d_shift.data() : nullptr,
             want.positions ? out.positions->template mutable_data_ptr<T>() : nullptr});
    });
    for (size_t l = 0; l < levels; ++l) {
        const Operands<T>& o = pyramid.levels()[l].o;
        if (want.position())
            collect(o, d_z[l], out.d_z);
        if (want.weight)
            write_weights(d_weight[l].template const_data_ptr<T>(), places_of(o).data(),
                          WeightColumns(*out.weight, static_cast<int64_t>(l) * C, C), *out.weight);
    }
}

template <class T>
Gradients<T> backward(const Tensor& features, const Tensor& weight, const Pyramid<T>& pyramid, const T* grad,
                      const Wanted& want, const T* pooled = nullptr) {
    const auto [B, C, H, W, N] = pyramid.sizes();
    Gradients<T> out;
    if (want.weight)
        out.weight = torch::stable::empty_like(weight);
    if (want.positions)
        out.positions = torch::stable::new_zeros(features, {B, N, 2}, kScalarType<T>);
    if (want.position())
        out.d_z.resize(static_cast<size_t>(6 * N));
    if (want.shift)
        out.d_shift.resize(static_cast<size_t>(B * ((N + kShiftBlock - 1) / kShiftBlock) * 2));
    if (B * N > 0 && (want.position() || want.weight))
        neuron_gradients(features, pyramid, pooled, grad, want, out);
    else if (want.weight)
        torch::stable::zero_(*out.weight);
    if (want.features)
        out.features = pyramid.features_gradient(features, grad);
    if (want.bias)
        out.bias = bias_gradient(features, B, N, grad);
    return out;
}

// The gradient in the operand's dtype. If it is not requested: an empty tensor with the dtype of `otherwise`.
inline Tensor cast_or_empty(const OptionalTensor& gradient, const OptionalTensor& operand, const Tensor& otherwise) {
    return gradient ? as_type(*gradient, operand->scalar_type()) : torch::stable::new_empty(otherwise, {0});
}

} // namespace v1fast
