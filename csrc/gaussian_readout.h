// What a kernel of the Gaussian readout may rely on.
#pragma once

#include "sizes.h"

namespace v1fast {

inline ReadoutSizes check_gaussian_readout(const Tensor& features, const Tensor& mu, const OptionalTensor& sigma,
                                           const Tensor& weight, const OptionalTensor& bias,
                                           const OptionalTensor& shift, const OptionalTensor& noise,
                                           const OptionalTensor& seed, const OptionalTensor& neuron_index,
                                           int64_t image_offset, bool share_noise) {
    STD_TORCH_CHECK(features.dim() == 4 && mu.dim() == 2, "gaussian_readout: want features [B, C, H, W] and mu [N, 2]");
    const ReadoutSizes s{features.size(0), features.size(1), features.size(2), features.size(3), mu.size(0)};
    check_maps(features, s);
    check_floats(mu, {s.N, 2}, "mu");
    check_floats(weight, {s.N, s.C}, "weight");
    if (sigma && sigma->dim() == 3)
        check_floats(sigma, {s.N, 2, 2}, "sigma");
    else if (sigma)
        check_floats(sigma, {s.N, sigma->dim() == 2 && sigma->size(1) == 1 ? 1 : 2}, "sigma");
    check_floats(bias, {s.N}, "bias");
    check_floats(shift, {s.B, 2}, "shift");
    STD_TORCH_CHECK(!(noise && seed) && (sigma || !(noise || seed)),
                    "noise, seed: want at most one of the two, and sigma beside it");
    check_floats(noise, {share_noise ? 1 : s.B, s.N, 2}, "noise");
    check_indices(seed, {1}, "seed");
    check_indices(neuron_index, {s.N}, "neuron_index");
    check_image_offset(image_offset, s.B);
    return s;
}

} // namespace v1fast
