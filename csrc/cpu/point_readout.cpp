// The readout of given points on the CPU. See v1fast/reference/point_readout.py for what it computes.
#include "../point_readout.h"

#include "readout.h"

#include <torch/csrc/stable/library.h>

namespace v1fast {
namespace {

Tensor point_readout(const Tensor& features, const Tensor& grid, const Tensor& weight, OptionalTensor bias,
                     OptionalTensor shift, bool align_corners) {
    const auto sizes = check_point_readout(features, grid, weight, bias, shift);
    const auto run = [&]<class T>(T) {
        OwnedOperands<T> owned(sizes, grid, weight, bias, shift, align_corners, false);
        return forward<T>(features, owned.operands);
    };
    const Tensor out = any_double({features, grid, weight, bias, shift}) ? run(double()) : run(float());
    return torch::stable::to(out, promote(features.scalar_type(), weight.scalar_type()));
}

using FiveTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

FiveTensors point_readout_backward(const Tensor& grad_output, const Tensor& features, const Tensor& grid,
                                   const Tensor& weight, OptionalTensor bias, OptionalTensor shift, bool align_corners,
                                   std::vector<bool> output_mask) {
    const auto sizes = check_point_readout(features, grid, weight, bias, shift);
    check_shape(grad_output, {sizes.B, sizes.N}, "grad_output");
    STD_TORCH_CHECK(output_mask.size() == 5, "output_mask: want 5 entries");
    const bool for_each_image = grid.dim() == 3;
    const Wanted want{
        output_mask[0],          output_mask[1] && !for_each_image, false, output_mask[2], output_mask[3] && bias,
        output_mask[4] && shift, output_mask[1] && for_each_image};
    const auto run = [&]<class T>(T) {
        OwnedOperands<T> owned(sizes, grid, weight, bias, shift, align_corners, false);
        const Operands<T>& o = owned.operands;
        const Gradients<T> found = backward<T>(features, weight, o, owned.values(grad_output), want);
        OptionalTensor d_grid = found.positions, d_shift;
        if (want.mu)
            d_grid = gather_rows<T>(grid, found.d_z, o, {{0}, {1}});
        if (want.shift)
            d_shift = shift_gradient<T>(*shift, found.d_shift, sizes.B);
        return FiveTensors{gradient_or_empty(found.features, features), gradient_or_empty(d_grid, grid),
                           gradient_or_empty(found.weight, weight),
                           gradient_or_empty(found.bias, want.bias ? *bias : grid),
                           gradient_or_empty(d_shift, want.shift ? *shift : grid)};
    };
    return any_double({features, grid, weight, bias, shift}) ? run(double()) : run(float());
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(v1fast, CPU, m) {
    m.impl("point_readout", TORCH_BOX(&point_readout));
    m.impl("point_readout_backward", TORCH_BOX(&point_readout_backward));
}

} // namespace v1fast
