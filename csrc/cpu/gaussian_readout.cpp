// The Gaussian readout on the CPU. v1fast/reference/gaussian_readout.py defines it.
#include "../gaussian_readout.h"
#include "../boxed.h"

#include "detail/readout.h"

namespace v1fast {
namespace {

Tensor gaussian_readout(const Tensor& features, const Tensor& mu, OptionalTensor sigma, const Tensor& weight,
                        OptionalTensor bias, OptionalTensor shift, OptionalTensor noise, OptionalTensor seed,
                        OptionalTensor neuron_index, int64_t image_offset, bool share_noise, bool align_corners) {
    const auto sizes = check_gaussian_readout(features, mu, sigma, weight, bias, shift, noise, seed, neuron_index,
                                              image_offset, share_noise);
    const auto run = [&]<class T>(T) {
        OwnedOperands<T> owned(sizes, mu, weight, 0, bias, shift, align_corners, true);
        owned.set_noise(sigma, noise, seed, neuron_index, image_offset, share_noise);
        Pyramid<T> pyramid;
        pyramid.add(std::move(owned));
        return pyramid.forward(features);
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
        OwnedOperands<T> owned(sizes, mu, weight, 0, bias, shift, align_corners, true);
        owned.set_noise(sigma, noise, seed, neuron_index, image_offset, share_noise);
        const T* const grad = owned.values(grad_output);
        Pyramid<T> pyramid;
        pyramid.add(std::move(owned));
        const Gradients<T> found = backward<T>(features, weight, pyramid, grad, want);
        OptionalTensor d_mu, d_sigma, d_shift;
        if (want.mu)
            d_mu = pick_sums<T>(mu, found.d_z, sizes.N, {{0}, {1}});
        if (want.sigma)
            d_sigma = sigma_gradient<T>(*sigma, found.d_z, sizes.N);
        if (want.shift)
            d_shift = shift_gradient<T>(*shift, found.d_shift, sizes.B);
        return SixTensors{cast_or_empty(found.features, features, features),
                          cast_or_empty(d_mu, mu, mu),
                          cast_or_empty(d_sigma, sigma, mu),
                          cast_or_empty(found.weight, weight, weight),
                          cast_or_empty(found.bias, bias, mu),
                          cast_or_empty(d_shift, shift, mu)};
    };
    return any_double({features, mu, sigma, weight, bias, shift, noise}) ? run(double()) : run(float());
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(v1fast, CPU, m) {
    m.impl("gaussian_readout", V1FAST_BOX(gaussian_readout));
    m.impl("gaussian_readout_backward", V1FAST_BOX(gaussian_readout_backward));
}

} // namespace v1fast
