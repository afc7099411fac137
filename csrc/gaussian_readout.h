// What a kernel of the Gaussian readout may rely on.
#pragma once

#include "sizes.h"

namespace v1fast {

inline ReadoutSizes check_gaussian_readout(const Tensor& features, const Tensor& mu, const OptionalTensor& sigma,
                                           const Tensor& weight, const OptionalTensor& bias,
                                           const OptionalTensor& shift, const OptionalTensor& noise,
                                           const OptionalTensor& seed, const OptionalTensor& neuron_index,
                                           bool share_noise) {
    using torch::headeronly::ScalarType;
    STD_TORCH_CHECK(features.dim() == 4 && mu.dim() == 2, "gaussian_readout: want features [B, C, H, W] and mu [N, 2]");
    const ReadoutSizes s{features.size(0), features.size(1), features.size(2), features.size(3), mu.size(0)};
    check_index_range(s);
    check_shape(mu, {s.N, 2}, "mu");
    check_shape(weight, {s.N, s.C}, "weight");
    if (sigma && sigma->dim() == 3)
        check_shape(*sigma, {s.N, 2, 2}, "sigma");
    else if (sigma)
        check_shape(*sigma, {s.N, sigma->dim() == 2 && sigma->size(1) == 1 ? 1 : 2}, "sigma");
    if (bias)
        check_shape(*bias, {s.N}, "bias");
    if (shift)
        check_shape(*shift, {s.B, 2}, "shift");
    if (noise)
        check_shape(*noise, {share_noise ? 1 : s.B, s.N, 2}, "noise");
    if (seed) {
        check_shape(*seed, {1}, "seed");
        STD_TORCH_CHECK(seed->scalar_type() == ScalarType::Long, "gaussian_readout: seed: want int64");
    }
    if (neuron_index) {
        check_shape(*neuron_index, {s.N}, "neuron_index");
        STD_TORCH_CHECK(neuron_index->scalar_type() == ScalarType::Long, "gaussian_readout: neuron_index: want int64");
    }
    return s;
}

} // namespace v1fast
