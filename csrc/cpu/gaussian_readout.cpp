// The Gaussian readout on the CPU. v1fast/reference/gaussian_readout.py defines it.
#include "../gaussian_readout.h"
#include "../boxed.h"

#include "detail/readout.h"

namespace v1fast {
namespace {

// One map, read by the neurons of a part.
template <class T>
Pyramid<T> pyramid_of(const Part& part, ReadoutSizes sizes, const Tensor& mu, const OptionalTensor& sigma,
                      const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& shift,
                      const OptionalTensor& noise, const OptionalTensor& seed, const OptionalTensor& neuron_index,
                      int64_t image_offset, bool share_noise, bool align_corners) {
    sizes.N = part.size();
    OwnedOperands<T> owned(sizes, part.of(mu), part.of(weight), 0, part.of(bias), shift, align_corners, true);
    owned.set_noise(part.of(sigma), part.of(noise, 1), seed, part.of(neuron_index), part.n0, image_offset, share_noise);
    Pyramid<T> pyramid;
    pyramid.add(std::move(owned));
    return pyramid;
}

Tensor gaussian_readout(const Tensor& features, const Tensor& mu, OptionalTensor sigma, const Tensor& weight,
                        OptionalTensor bias, OptionalTensor shift, OptionalTensor noise, OptionalTensor seed,
                        OptionalTensor neuron_index, int64_t image_offset, bool share_noise, bool align_corners) {
    const auto sizes = check_gaussian_readout(features, mu, sigma, weight, bias, shift, noise, seed, neuron_index,
                                              image_offset, share_noise);
    const auto run = [&]<class T>(T) {
        return forward<T>(features, weight, [&](const Part& part) {
            return pyramid_of<T>(part, sizes, mu, sigma, weight, bias, shift, noise, seed, neuron_index, image_offset,
                                 share_noise, align_corners);
        });
    };
    const Tensor out = any_double({features, mu, sigma, weight, bias, shift, noise}) ? run(double()) : run(float());
    return as_type(out, promote(features.scalar_type(), weight.scalar_type()));
}

using SixTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

SixTensors gaussian_readout_backward(const Tensor& grad_output, const Tensor& features, const Tensor& mu,
                                     OptionalTensor sigma, const Tensor& weight, OptionalTensor bias,
                                     OptionalTensor shift, OptionalTensor noise, OptionalTensor seed,
                                     OptionalTensor neuron_index, int64_t image_offset, bool share_noise,
                                     bool align_corners, std::vector<bool> output_mask) {
    const auto sizes = check_gaussian_readout(features, mu, sigma, weight, bias, shift, noise, seed, neuron_index,
                                              image_offset, share_noise);
    check_floats(grad_output, {sizes.B, sizes.N}, "grad_output");
    check_mask(output_mask, 6);
    const Wanted want{.features = output_mask[0],
                      .mu = output_mask[1],
                      .sigma = output_mask[2] && sigma,
                      .weight = output_mask[3],
                      .bias = output_mask[4] && bias,
                      .shift = output_mask[5] && shift,
                      .positions = false};
    const auto run = [&]<class T>(T) {
        const Tensor upstream = as_contiguous(as_type(grad_output, kScalarType<T>));
        const auto make = [&](const Part& part) {
            return pyramid_of<T>(part, sizes, mu, sigma, weight, bias, shift, noise, seed, neuron_index, image_offset,
                                 share_noise, align_corners);
        };
        const Gradients<T> found =
            backward<T>(features, sigma, weight, make, upstream.template const_data_ptr<T>(), want);
        return SixTensors{cast_or_empty(found.features, features, features),
                          cast_or_empty(found.mu, mu, mu),
                          cast_or_empty(found.sigma, sigma, mu),
                          cast_or_empty(found.weight, weight, weight),
                          cast_or_empty(found.bias, bias, mu),
                          cast_or_empty(found.shift, shift, mu)};
    };
    return any_double({features, mu, sigma, weight, bias, shift, noise}) ? run(double()) : run(float());
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(v1fast, CPU, m) {
    m.impl("gaussian_readout", V1FAST_BOX(gaussian_readout));
    m.impl("gaussian_readout_backward", V1FAST_BOX(gaussian_readout_backward));
}

} // namespace v1fast
