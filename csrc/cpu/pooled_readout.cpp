// The readout of given points in a map and its average poolings, on the CPU. v1fast/reference/pooled_readout.py defines
// it.
#include "../boxed.h"
#include "../points.h"

#include "detail/readout.h"

namespace v1fast {
namespace {

// A map and its successive poolings. The neurons of a part read them at the same normalised positions.
template <class T>
Pyramid<T> pyramid_of(const Part& part, ReadoutSizes sizes, const Tensor& grid, const Tensor& weight,
                      const OptionalTensor& bias, const OptionalTensor& shift, int64_t kernel, int64_t steps,
                      bool align_corners) {
    Pyramid<T> pyramid(kernel);
    sizes.N = part.size();
    const Tensor own_grid = part.of(grid, grid.dim() - 2), own_weight = part.of(weight);
    const OptionalTensor own_bias = part.of(bias);
    for (int64_t step = 0; step <= steps; ++step) {
        OwnedOperands<T> owned(sizes, own_grid, own_weight, step * sizes.C, own_bias, shift, align_corners, false);
        owned.operands.add = step > 0;
        pyramid.add(std::move(owned));
        sizes.H /= kernel;
        sizes.W /= kernel;
    }
    return pyramid;
}

template <class T>
Tensor pool_all(const Tensor& features, const ReadoutSizes& sizes, int64_t kernel, int64_t steps) {
    std::vector<ReadoutSizes> from;
    std::vector<int64_t> begin; // where each pooling begins
    int64_t total = 0;
    for (ReadoutSizes s = sizes; static_cast<int64_t>(from.size()) < steps; s.H /= kernel, s.W /= kernel) {
        from.push_back(s);
        begin.push_back(total);
        total += s.B * s.C * (s.H / kernel) * (s.W / kernel);
    }
    Tensor out = torch::stable::new_empty(features, {total}, kScalarType<T>);
    if (total == 0) // of however many images
        return out;
    T* const data = out.mutable_data_ptr<T>();
    ImageReader<T> images(features);
    images.for_each_chunk([&](int64_t first, int64_t last) {
        const ImageReader<T>* finer = &images;
        std::deque<ImageReader<T>> pooled;
        for (size_t l = 0; l < from.size(); ++l) {
            const int64_t size = from[l].C * (from[l].H / kernel) * (from[l].W / kernel);
            finer = &pooled.emplace_back(pool(*finer, from[l], kernel, first, last, data + begin[l] + first * size));
        }
    });
    return out;
}

Tensor pooled_levels(const Tensor& features, int64_t kernel, int64_t steps, bool wide) {
    STD_TORCH_CHECK(features.dim() == 4, "pooled_levels: want features [B, C, H, W]");
    const ReadoutSizes sizes{features.size(0), features.size(1), features.size(2), features.size(3), 0};
    check_maps(features, sizes);
    check_poolings(sizes, kernel, steps);
    return wide ? pool_all<double>(features, sizes, kernel, steps) : pool_all<float>(features, sizes, kernel, steps);
}

// The given poolings, which must be complete; null if they still have to be computed.
template <class T>
const T* checked(const OptionalTensor& pooled, const ReadoutSizes& sizes, int64_t kernel, int64_t steps) {
    if (!pooled)
        return nullptr;
    int64_t size = 0, H = sizes.H, W = sizes.W;
    for (int64_t step = 0; step < steps; ++step)
        size += sizes.B * sizes.C * (H /= kernel) * (W /= kernel);
    check_shape(*pooled, {size}, "pooled");
    STD_TORCH_CHECK(pooled->is_contiguous() && pooled->scalar_type() == kScalarType<T>,
                    "pooled: want what pooled_levels returns");
    return pooled->const_data_ptr<T>();
}

Tensor pooled_readout(const Tensor& features, const Tensor& grid, const Tensor& weight, OptionalTensor bias,
                      OptionalTensor shift, OptionalTensor pooled, bool align_corners, int64_t kernel, int64_t steps) {
    const auto sizes = check_pooled_readout(features, grid, weight, bias, shift, kernel, steps);
    const auto run = [&]<class T>(T) {
        return forward<T>(
            features, weight,
            [&](const Part& part) {
                return pyramid_of<T>(part, sizes, grid, weight, bias, shift, kernel, steps, align_corners);
            },
            checked<T>(pooled, sizes, kernel, steps));
    };
    const Tensor out = any_double({features, grid, weight, bias, shift}) ? run(double()) : run(float());
    return as_type(out, promote(features.scalar_type(), weight.scalar_type()));
}

using FiveTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

FiveTensors pooled_readout_backward(const Tensor& grad_output, const Tensor& features, const Tensor& grid,
                                    const Tensor& weight, OptionalTensor bias, OptionalTensor shift,
                                    OptionalTensor pooled, bool align_corners, int64_t kernel, int64_t steps,
                                    std::vector<bool> output_mask) {
    const auto sizes = check_pooled_readout(features, grid, weight, bias, shift, kernel, steps);
    check_floats(grad_output, {sizes.B, sizes.N}, "grad_output");
    check_mask(output_mask, 5);
    const bool for_each_image = grid.dim() == 3;
    const Wanted want{.features = output_mask[0],
                      .mu = output_mask[1] && !for_each_image,
                      .sigma = false,
                      .weight = output_mask[2],
                      .bias = output_mask[3] && bias,
                      .shift = output_mask[4] && shift,
                      .positions = output_mask[1] && for_each_image};
    const auto run = [&]<class T>(T) {
        const auto make = [&](const Part& part) {
            return pyramid_of<T>(part, sizes, grid, weight, bias, shift, kernel, steps, align_corners);
        };
        const Tensor upstream = as_contiguous(as_type(grad_output, kScalarType<T>));
        const Gradients<T> found =
            backward<T>(features, std::nullopt, weight, make, upstream.template const_data_ptr<T>(), want,
                        checked<T>(pooled, sizes, kernel, steps));
        const OptionalTensor& d_grid = for_each_image ? found.positions : found.mu;
        return FiveTensors{cast_or_empty(found.features, features, features), cast_or_empty(d_grid, grid, grid),
                           cast_or_empty(found.weight, weight, weight), cast_or_empty(found.bias, bias, grid),
                           cast_or_empty(found.shift, shift, grid)};
    };
    return any_double({features, grid, weight, bias, shift}) ? run(double()) : run(float());
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(v1fast, CPU, m) {
    m.impl("pooled_levels", V1FAST_BOX(pooled_levels));
    m.impl("pooled_readout", V1FAST_BOX(pooled_readout));
    m.impl("pooled_readout_backward", V1FAST_BOX(pooled_readout_backward));
}

} // namespace v1fast
