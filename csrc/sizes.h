// Sizes of a readout's operands, and the check of one operand against them. The meaning of the shapes is checked in
// v1fast/ops; this is memory safety: whoever calls an op directly gets an error, not a read outside a tensor.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>

namespace v1fast {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct ReadoutSizes {
    int64_t B, C, H, W, N;
};

inline void check_shape(const Tensor& tensor, std::initializer_list<int64_t> want, const char* name) {
    bool same = tensor.dim() == static_cast<int64_t>(want.size());
    int64_t axis = 0;
    for (int64_t size : want)
        same = same && tensor.size(axis++) == size;
    STD_TORCH_CHECK(same, name, ": sizes do not fit the other operands");
}

inline void check_index_range(const ReadoutSizes& s) {
    STD_TORCH_CHECK(s.N <= INT32_MAX && s.H < INT32_MAX && s.W < INT32_MAX && (s.H + 1) * (s.W + 1) < INT32_MAX,
                    "N, H * W: want less than 2^31 each");
}

} // namespace v1fast
