// What the kernels that read given points may rely on.
#pragma once

#include "sizes.h"

#include <algorithm>

namespace v1fast {

// Positions [N, 2], or [B, N, 2] with separate positions for each image.
inline ReadoutSizes check_points(const Tensor& features, const Tensor& grid, const OptionalTensor& shift) {
    STD_TORCH_CHECK(features.dim() == 4 && (grid.dim() == 2 || grid.dim() == 3),
                    "want features [B, C, H, W] and grid [N, 2] or [B, N, 2]");
    const ReadoutSizes s{features.size(0), features.size(1), features.size(2), features.size(3),
                         grid.size(grid.dim() - 2)};
    check_maps(features, s);
    if (grid.dim() == 2)
        check_floats(grid, {s.N, 2}, "grid");
    else
        check_floats(grid, {s.B, s.N, 2}, "grid");
    check_floats(shift, {s.B, 2}, "shift");
    return s;
}

inline void check_poolings(const ReadoutSizes& s, int64_t kernel, int64_t steps) {
    constexpr int64_t kMost = 1024; // a kernel of 1 never shrinks the map, so any number would pass
    STD_TORCH_CHECK(kernel >= 1 && steps >= 0 && steps <= kMost, "pool_kernel, pool_steps: want at least 1, 0 .. ",
                    kMost);
    int64_t least = std::min(s.H, s.W);
    for (int64_t step = 0; step < steps; ++step)
        least /= kernel;
    STD_TORCH_CHECK(least >= 1, "pool_steps: a pooling would leave nothing of the features");
}

inline ReadoutSizes check_pooled_readout(const Tensor& features, const Tensor& grid, const Tensor& weight,
                                         const OptionalTensor& bias, const OptionalTensor& shift, int64_t kernel,
                                         int64_t steps) {
    const ReadoutSizes s = check_points(features, grid, shift);
    check_poolings(s, kernel, steps);
    check_floats(weight, {s.N, s.C * (steps + 1)}, "weight");
    check_floats(bias, {s.N}, "bias");
    return s;
}

} // namespace v1fast
