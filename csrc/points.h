// What the kernels that read given points may rely on.
#pragma once

#include "sizes.h"

namespace v1fast {

// Positions [N, 2], or [B, N, 2] for each image.
inline ReadoutSizes check_points(const Tensor& features, const Tensor& grid, const OptionalTensor& shift) {
    STD_TORCH_CHECK(features.dim() == 4 && (grid.dim() == 2 || grid.dim() == 3),
                    "want features [B, C, H, W] and grid [N, 2] or [B, N, 2]");
    const ReadoutSizes s{features.size(0), features.size(1), features.size(2), features.size(3),
                         grid.size(grid.dim() - 2)};
    check_index_range(s);
    if (grid.dim() == 2)
        check_shape(grid, {s.N, 2}, "grid");
    else
        check_shape(grid, {s.B, s.N, 2}, "grid");
    if (shift)
        check_shape(*shift, {s.B, 2}, "shift");
    return s;
}

inline ReadoutSizes check_pooled_readout(const Tensor& features, const Tensor& grid, const Tensor& weight,
                                         const OptionalTensor& bias, const OptionalTensor& shift, int64_t levels) {
    const ReadoutSizes s = check_points(features, grid, shift);
    check_shape(weight, {s.N, s.C * levels}, "weight");
    if (bias)
        check_shape(*bias, {s.N}, "bias");
    return s;
}

} // namespace v1fast
