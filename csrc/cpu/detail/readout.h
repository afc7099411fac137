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
    std::vector<int64_t> blocks{0}; // of samples of whole cells: where each begins, and N

    explicit FixedPoints(const Operands<T>& o) : points(1, o.s.N), sorted(o.s.N) {
        channel_kernels<T>().locate_fixed(o, points, sorted);
        while (blocks.back() < o.s.N) {
            int64_t end = std::min(blocks.back() + kSorted, o.s.N);
            while (end < o.s.N && sorted.place[end] == sorted.place[end - 1])
                ++end;
            blocks.push_back(end);
        }
    }
    int64_t longest() const {
        int64_t most = 0;
        for (size_t block = 0; block + 1 < blocks.size(); ++block)
            most = std::max(most, blocks[block + 1] - blocks[block]);
        return most;
    }
};

// Calls work(n0, n1) for blocks of at most `most` neurons; once for no neurons.
template <class Work>
void for_each_sorted_block(int64_t N, int64_t most, const Work& work) {
    int64_t n = 0;
    do {
        const int64_t end = std::min(n + most, N);
        work(n, end);
        n = end;
    } while (n < N);
}

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
              corner_weight(level.fixed_ ? 4 * padded(level.fixed_->longest()) : 0) {}
    };

    // The gradients of images b0 .. b1 - 1. All of them take a block of neurons before the next block: its weights
    // come from memory once.
    void write_image_gradients(const T* grad, int64_t b0, int64_t b1, Canvas<T>* canvases, Workspace& workspace) const {
        const ChannelKernels<T>& kernels = channel_kernels<T>();
        if (fixed_)
            for (size_t block = 0; block + 1 < fixed_->blocks.size(); ++block)
                for (int64_t b = b0; b < b1; ++b)
                    kernels.backward_image_fixed(o, grad, b, fixed_->blocks[block], fixed_->blocks[block + 1],
                                                 canvases[b - b0], fixed_->sorted, workspace.corner_weight.get());
        else
            for_each_sorted_block(o.s.N, workspace.points.capacity, [&](int64_t n0, int64_t n1) {
                for (int64_t b = b0; b < b1; ++b)
                    kernels.backward_image(o, grad, o.weight, b, n0, n1, canvases[b - b0], workspace.points,
                                           workspace.sorted);
            });
    }

    // How many images to write together: whose parts that a block of neurons writes fit the cache. More than one only
    // where there are several blocks.
    int64_t images_written() const {
        const int64_t bytes = std::max<int64_t>(1, o.s.C * o.s.H * o.s.W * static_cast<int64_t>(sizeof(T)));
        return o.s.N <= kSorted ? 1 : std::clamp<int64_t>(kBufferBytes / bytes, 1, kWritten);
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
    void for_each_map(ImageReader<T>& images, const T* given, const Work& work) const {
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

    // out [B, N]
    void forward(ImageReader<T>& images, const T* pooled, T* out) const {
        for_each_map(images, pooled, [&](size_t l, const ImageReader<T>& maps, int64_t first, int64_t last) {
            levels_[l].forward(maps, first, last, out);
        });
    }

    // first, last: whether no other neurons have written, and none will.
    void write_features_gradient(const ImageWriter<T>& writer, const T* grad, bool first, bool last) const {
        // 2: images that share Philox words
        torch::stable::parallel_for(0, sizes().B, 2, [&](int64_t begin, int64_t end) {
            const int64_t images = std::min(levels_.front().images_written(), end - begin);
            std::vector<std::unique_ptr<T[]>> buffers;
            for (int64_t i = 0; i < images; ++i)
                buffers.push_back(writer.buffer());
            std::deque<typename Level<T>::Workspace> workspaces;
            std::vector<AlignedArray<T>> pooled;
            for (size_t l = 0; l < levels_.size(); ++l) {
                workspaces.emplace_back(levels_[l]);
                pooled.emplace_back(l > 0 ? images * image_size(l) : 0);
            }
            std::vector<Canvas<T>> canvases(static_cast<size_t>(images));
            for (int64_t b0 = begin; b0 < end; b0 += images) {
                const int64_t b1 = std::min(b0 + images, end);
                std::fill(canvases.begin(), canvases.end(), Canvas<T>{});
                for (size_t l = levels_.size(); l-- > 0;) {
                    for (int64_t i = 0; i < b1 - b0; ++i) {
                        canvases[i].image =
                            l > 0 ? pooled[l].get() + i * image_size(l) : writer.begin(b0 + i, buffers[i].get());
                        canvases[i].zeros = l == 0 && first && writer.zeros();
                        canvases[i].values = l == 0 && !first;
                    }
                    levels_[l].write_image_gradients(grad, b0, b1, canvases.data(), workspaces[l]);
                    for (Canvas<T>& canvas : canvases)
                        canvas = {nullptr, false, false, canvas.image, levels_[l].o.s.H, levels_[l].o.s.W, kernel_};
                }
                for (int64_t b = b0; last && b < b1; ++b)
                    writer.finish(b, buffers[b - b0].get());
            }
        });
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

// Which rows of sums [6, N] add up to each column of a gradient of the neurons.
using Terms = std::vector<std::vector<int64_t>>;

inline Terms mean_terms() { return {{0}, {1}}; }

// Of sigma [N, 2, 2], [N, 2] or [N, 1].
template <class T>
Terms sigma_terms(const Tensor& sigma) {
    const int64_t columns = OwnedOperands<T>::sigma_columns(sigma);
    return columns == 4 ? Terms{{2}, {3}, {4}, {5}} : columns == 2 ? Terms{{2}, {5}} : Terms{{2, 5}};
}

// out [N, columns]
template <class T>
void pick_sums(const std::vector<double>& sums, int64_t N, const Terms& terms, T* out) {
    for (int64_t n = 0; n < N; ++n)
        for (const std::vector<int64_t>& rows : terms) {
            double sum = 0;
            for (int64_t row : rows)
                sum += sums[row * N + n];
            *out++ = static_cast<T>(sum);
        }
}

// Adds the sums over neurons of d_shift, as in NeuronSums, to total [B, 2].
inline void add_shift_gradient(const std::vector<double>& parts, int64_t B, std::vector<double>& total) {
    const int64_t blocks = B ? static_cast<int64_t>(parts.size()) / (2 * B) : 0;
    for (int64_t b = 0; b < B; ++b)
        for (int64_t axis = 0; axis < 2; ++axis)
            for (int64_t block = 0; block < blocks; ++block)
                total[b * 2 + axis] += parts[(b * blocks + block) * 2 + axis];
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
    OptionalTensor features, mu, sigma, weight, bias, shift, positions;
};

// For the neurons of all levels: puts the sums of a level back from its working order and adds them.
template <class T>
void collect(const Operands<T>& o, const std::vector<double>& d_z, std::vector<double>& total) {
    for (size_t row = 0; row < d_z.size() / static_cast<size_t>(o.s.N); ++row)
        for (int64_t n = 0; n < o.s.N; ++n)
            total[row * o.s.N + o.order[n]] += d_z[row * o.s.N + n];
}

// Neurons n0 .. n1 - 1 of N, whose operands are copied and worked on together.
//
// A population is taken in parts of a size that depends on nothing but the number of channels. The weights of a part,
// packed, and their gradients stay in the outer caches for all passes, and no copy has the size of all weights.
struct Part {
    int64_t n0, n1, N;

    int64_t size() const { return n1 - n0; }
    bool first() const { return n0 == 0; }
    bool last() const { return n1 == N; }
    bool whole() const { return first() && last(); }

    // The neurons of this part, which lie along `axis`: a view.
    Tensor of(Tensor tensor, int64_t axis = 0) const {
        return whole() ? tensor : torch::stable::narrow(tensor, axis, n0, size());
    }
    OptionalTensor of(const OptionalTensor& tensor, int64_t axis = 0) const {
        return tensor ? OptionalTensor(of(*tensor, axis)) : std::nullopt;
    }
};

// The packed weights of a part, which share the outer caches with their gradients and the maps. The fastest of 0.5 to
// 32 MiB.
inline constexpr int64_t kPartBytes = 2 << 20;

// How many neurons with weights of so many bytes each are a part.
inline int64_t neurons_of_part(int64_t weight_bytes) {
    return std::max<int64_t>(1, kPartBytes / std::max<int64_t>(1, weight_bytes) / kSorted) * kSorted;
}

// Calls work(part) for all neurons; once where there are none.
template <class Work>
void for_each_part(int64_t N, int64_t most, const Work& work) {
    for_each_sorted_block(N, most, [&](int64_t n0, int64_t n1) { work(Part{n0, n1, N}); });
}

// Columns n0 .. n1 - 1 of rows [B, N] of elements of `width` numbers, packed [B, n1 - n0]; or the reverse.
template <class T>
void read_columns(const T* rows, int64_t B, const Part& part, int64_t width, T* columns) {
    for (int64_t b = 0; b < B; ++b)
        std::copy_n(rows + (b * part.N + part.n0) * width, part.size() * width, columns + b * part.size() * width);
}
template <class T>
void write_columns(const T* columns, int64_t B, const Part& part, int64_t width, T* rows) {
    for (int64_t b = 0; b < B; ++b)
        std::copy_n(columns + b * part.size() * width, part.size() * width, rows + (b * part.N + part.n0) * width);
}

template <class T>
int64_t neurons_of_part(const Tensor& weight) {
    return neurons_of_part(weight.size(1) * static_cast<int64_t>(sizeof(T)));
}

// [B, N]. make(part): the Pyramid of its neurons.
template <class T, class Make>
Tensor forward(const Tensor& features, const Tensor& weight, const Make& make, const T* pooled = nullptr) {
    const int64_t B = features.size(0), N = weight.size(0), most = neurons_of_part<T>(weight);
    Tensor out = torch::stable::new_empty(features, {B, N}, kScalarType<T>);
    if (B * N == 0)
        return out;
    T* const data = out.mutable_data_ptr<T>();
    ImageReader<T> images(features, N > most);
    for_each_part(N, most, [&](const Part& part) {
        if (part.whole())
            return make(part).forward(images, pooled, data);
        const AlignedArray<T> columns(B * part.size());
        make(part).forward(images, pooled, columns.get());
        write_columns(columns.get(), B, part, 1, data);
    });
    return out;
}

// The gradients of one part's neurons. grad [B, part], d_positions [B, part, 2] or null.
template <class T>
void neuron_gradients(ImageReader<T>& images, const Pyramid<T>& pyramid, const T* pooled, const T* grad,
                      const Wanted& want, OptionalTensor d_weight, std::vector<double>& total_d_z,
                      std::vector<double>& d_shift, T* d_positions) {
    const auto [B, C, H, W, N] = pyramid.sizes();
    const size_t levels = pyramid.levels().size();
    std::vector<std::vector<double>> d_z(levels);
    std::vector<Tensor> packed; // in the working order
    for (size_t l = 0; l < levels; ++l) {
        d_z[l].resize(total_d_z.size());
        if (want.weight)
            packed.push_back(torch::stable::new_zeros(*d_weight, {N, C}, kScalarType<T>));
    }
    pyramid.for_each_map(images, pooled, [&](size_t l, const ImageReader<T>& maps, int64_t first, int64_t last) {
        pyramid.levels()[l].add_neuron_gradients(maps, first, last, grad,
                                                 {want.weight ? packed[l].template mutable_data_ptr<T>() : nullptr,
                                                  want.position() ? d_z[l].data() : nullptr,
                                                  want.shift ? d_shift.data() : nullptr, d_positions});
    });
    for (size_t l = 0; l < levels; ++l) {
        const Operands<T>& o = pyramid.levels()[l].o;
        if (want.position())
            collect(o, d_z[l], total_d_z);
        if (want.weight)
            write_weights(packed[l].template const_data_ptr<T>(), places_of(o).data(),
                          WeightColumns(*d_weight, static_cast<int64_t>(l) * C, C), *d_weight);
    }
}

// The gradients of all neurons, as they grow part by part.
template <class T>
class GradientSums {
    const Wanted want_;
    const int64_t B_, N_;
    Terms mu_terms_, sigma_terms_;
    std::vector<double> shift_; // [B, 2]

    static T* data(OptionalTensor& tensor) { return tensor ? tensor->mutable_data_ptr<T>() : nullptr; }
    OptionalTensor columns(const Tensor& like, const Terms& terms) const {
        return torch::stable::new_empty(like, {N_, static_cast<int64_t>(terms.size())}, kScalarType<T>);
    }

public:
    Gradients<T> out;

    GradientSums(const Tensor& features, const OptionalTensor& sigma, const Tensor& weight, const Wanted& want)
        : want_(want), B_(features.size(0)), N_(weight.size(0)) {
        if (want.weight)
            out.weight = torch::stable::empty_like(weight);
        if (want.positions)
            out.positions = torch::stable::new_zeros(features, {B_, N_, 2}, kScalarType<T>);
        if (want.mu)
            out.mu = columns(features, mu_terms_ = mean_terms());
        if (want.sigma)
            out.sigma = columns(features, sigma_terms_ = sigma_terms<T>(*sigma));
        if (want.shift)
            shift_.resize(static_cast<size_t>(2 * B_));
    }

    // grad [B, part]
    void add(const Part& part, ImageReader<T>& images, const Pyramid<T>& pyramid, const T* pooled, const T* grad) {
        OptionalTensor d_weight = part.of(out.weight);
        if (B_ * part.size() == 0 || !(want_.position() || want_.weight)) {
            if (d_weight)
                torch::stable::zero_(*d_weight);
            if (!want_.position())
                return;
        }
        std::vector<double> d_z(want_.position() ? static_cast<size_t>(6 * part.size()) : 0);
        std::vector<double> d_shift(
            want_.shift ? static_cast<size_t>(B_ * ((part.size() + kShiftBlock - 1) / kShiftBlock) * 2) : 0);
        std::vector<T> positions;
        if (want_.positions && !part.whole())
            positions.resize(static_cast<size_t>(B_ * part.size() * 2));
        T* const d_positions = part.whole() ? data(out.positions) : positions.data();
        if (B_ * part.size() > 0)
            neuron_gradients(images, pyramid, pooled, grad, want_, d_weight, d_z, d_shift,
                             want_.positions ? d_positions : nullptr);
        if (!positions.empty())
            write_columns(positions.data(), B_, part, 2, data(out.positions));
        if (want_.mu)
            pick_sums(d_z, part.size(), mu_terms_, data(out.mu) + part.n0 * std::ssize(mu_terms_));
        if (want_.sigma)
            pick_sums(d_z, part.size(), sigma_terms_, data(out.sigma) + part.n0 * std::ssize(sigma_terms_));
        if (want_.shift)
            add_shift_gradient(d_shift, B_, shift_);
    }

    void finish(const Tensor& features) {
        if (out.sigma && sigma_terms_.size() == 4)
            out.sigma = torch::stable::view(*out.sigma, {N_, 2, 2});
        if (!want_.shift)
            return;
        out.shift = torch::stable::new_empty(features, {B_, 2}, kScalarType<T>);
        std::transform(shift_.begin(), shift_.end(), data(out.shift), [](double sum) { return static_cast<T>(sum); });
    }
};

// grad [B, N]; make(part): the Pyramid of its neurons.
template <class T, class Make>
Gradients<T> backward(const Tensor& features, const OptionalTensor& sigma, const Tensor& weight, const Make& make,
                      const T* grad, const Wanted& want, const T* pooled = nullptr) {
    const int64_t B = features.size(0), N = weight.size(0), most = neurons_of_part<T>(weight);
    GradientSums<T> sums(features, sigma, weight, want);
    std::optional<ImageWriter<T>> writer;
    if (want.features)
        writer.emplace(features, N > most);
    ImageReader<T> images(features, N > most);
    for_each_part(N, most, [&](const Part& part) {
        const AlignedArray<T> columns(part.whole() ? 0 : B * part.size());
        if (!part.whole())
            read_columns(grad, B, part, 1, columns.get());
        const T* const own = part.whole() ? grad : columns.get();
        const Pyramid<T> pyramid = make(part);
        sums.add(part, images, pyramid, pooled, own);
        if (writer)
            pyramid.write_features_gradient(*writer, own, part.first(), part.last());
    });
    sums.finish(features);
    if (writer)
        sums.out.features = writer->gradient();
    if (want.bias)
        sums.out.bias = bias_gradient(features, B, N, grad);
    return sums.out;
}

// The gradient in the operand's dtype. If it is not requested: an empty tensor with the dtype of `otherwise`.
inline Tensor cast_or_empty(const OptionalTensor& gradient, const OptionalTensor& operand, const Tensor& otherwise) {
    return gradient ? as_type(*gradient, operand->scalar_type()) : torch::stable::new_empty(otherwise, {0});
}

} // namespace v1fast
