// The features at given points on the CPU. v1fast/reference/point_gather.py defines the op.
#include "../boxed.h"
#include "../points.h"

#include "detail/readout.h"

namespace v1fast {
namespace {

// Calls work(b, n0, n1, points) in parallel for each image, with all neurons or some of them.
template <class Work>
void for_each_image(const ReadoutSizes& s, int64_t first, int64_t last, const Work& work) {
    for_each_group(first, last, 1, s.N, [&](int64_t b, int64_t, int64_t n0, int64_t n1) { work(b, n0, n1); });
}

template <class T>
Tensor gather(const Tensor& features, const Operands<T>& o) {
    const int64_t N = o.s.N, C = o.s.C;
    Tensor out = torch::stable::new_empty(features, {o.s.B, N, C}, kScalarType<T>);
    if (o.s.B * N == 0)
        return out;
    T* const data = out.mutable_data_ptr<T>();
    ImageReader<T> images(features);
    images.for_each_chunk([&](int64_t first, int64_t last) {
        for_each_image(o.s, first, last, [&](int64_t b, int64_t n0, int64_t n1) {
            Points<T> points(1, std::min(kBlock, n1 - n0));
            channel_kernels<T>().gather(o, images, b, n0, n1, data + b * N * C, points);
        });
    });
    return out;
}

template <class T>
Tensor features_gradient(const Tensor& features, const Operands<T>& o, const T* grad) {
    const ImageWriter<T> writer(features);
    torch::stable::parallel_for(0, o.s.B, 1, [&](int64_t begin, int64_t end) {
        const std::unique_ptr<T[]> buffer = writer.buffer();
        Points<T> points(1, std::min(kSorted, o.s.N));
        CellOrder<T> sorted(points.capacity);
        for (int64_t b = begin; b < end; ++b) {
            Canvas<T> canvas{writer.begin(b, buffer.get()), writer.zeros(), false, nullptr, 0, 0, 1};
            for_each_sorted_block(o.s.N, points.capacity, [&](int64_t n0, int64_t n1) {
                channel_kernels<T>().backward_image(o, nullptr, grad + b * o.s.N * o.s.C, b, n0, n1, canvas, points,
                                                    sorted);
            });
            writer.finish(b, buffer.get());
        }
    });
    return writer.gradient();
}

// [B, N, 2]
template <class T>
std::vector<T> positions_gradient(const Tensor& features, const Operands<T>& o, const T* grad) {
    const int64_t N = o.s.N, C = o.s.C;
    std::vector<T> out(static_cast<size_t>(2 * o.s.B * N));
    if (out.empty())
        return out;
    ImageReader<T> images(features);
    images.for_each_chunk([&](int64_t first, int64_t last) {
        for_each_image(o.s, first, last, [&](int64_t b, int64_t n0, int64_t n1) {
            Points<T> points(1, std::min(kBlock, n1 - n0));
            channel_kernels<T>().gather_positions(o, images, grad + b * N * C, b, n0, n1, out.data() + 2 * b * N,
                                                  points);
        });
    });
    return out;
}

// A tensor of these sizes. Its element [i, axis] is the sum of positions[first(i) + k * step + axis] over k < count.
template <class T, class First>
Tensor sums_of(const std::vector<T>& positions, const Tensor& like, std::vector<int64_t> sizes, const First& first,
               int64_t step, int64_t count) {
    Tensor out = torch::stable::new_empty(like, sizes, kScalarType<T>);
    T* const data = out.mutable_data_ptr<T>();
    for (int64_t i = 0; i < out.numel() / 2; ++i)
        for (int64_t axis = 0; axis < 2; ++axis) {
            double sum = 0;
            for (int64_t k = 0; k < count; ++k)
                sum += positions[first(i) + k * step + axis];
            data[2 * i + axis] = static_cast<T>(sum);
        }
    return out;
}

Tensor point_gather(const Tensor& features, const Tensor& grid, OptionalTensor shift, bool align_corners) {
    const auto sizes = check_points(features, grid, shift);
    const auto run = [&]<class T>(T) {
        const OwnedOperands<T> owned(sizes, grid, shift, align_corners);
        return gather<T>(features, owned.operands);
    };
    const Tensor out = any_double({features, grid, shift}) ? run(double()) : run(float());
    return as_type(out, features.scalar_type());
}

using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;

ThreeTensors point_gather_backward(const Tensor& grad_output, const Tensor& features, const Tensor& grid,
                                   OptionalTensor shift, bool align_corners, std::vector<bool> output_mask) {
    const auto sizes = check_points(features, grid, shift);
    // Not a structured binding: clang before 16 lets no lambda capture one.
    const int64_t B = sizes.B, N = sizes.N;
    check_floats(grad_output, {B, N, sizes.C}, "grad_output");
    check_mask(output_mask, 3);
    const auto run = [&]<class T>(T) {
        const OwnedOperands<T> owned(sizes, grid, shift, align_corners);
        const Tensor upstream = as_contiguous(as_type(grad_output, kScalarType<T>));
        const T* const grad = upstream.template const_data_ptr<T>();
        const bool want_shift = output_mask[2] && shift;
        OptionalTensor d_features, d_grid, d_shift;
        if (output_mask[0])
            d_features = features_gradient<T>(features, owned.operands, grad);
        if (output_mask[1] || want_shift) {
            const std::vector<T> positions = positions_gradient<T>(features, owned.operands, grad);
            const auto own = [](int64_t i) { return 2 * i; };
            if (output_mask[1])
                d_grid = grid.dim() == 2 ? sums_of(positions, grid, {N, 2}, own, 2 * N, B)
                                         : sums_of(positions, grid, {B, N, 2}, own, 0, 1);
            if (want_shift)
                d_shift = sums_of(positions, grid, {B, 2}, [&](int64_t i) { return 2 * N * i; }, 2, N);
        }
        return ThreeTensors{cast_or_empty(d_features, features, features), cast_or_empty(d_grid, grid, grid),
                            cast_or_empty(d_shift, shift, grid)};
    };
    return any_double({features, grid, shift}) ? run(double()) : run(float());
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(v1fast, CPU, m) {
    m.impl("point_gather", V1FAST_BOX(point_gather));
    m.impl("point_gather_backward", V1FAST_BOX(point_gather_backward));
}

} // namespace v1fast
