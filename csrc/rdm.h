// What a kernel of the dissimilarity matrices may rely on. The meaning of the shapes is checked in v1fast/ops; this is
// memory safety: whoever calls the op directly gets an error, not a read outside a tensor.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <string>

namespace v1fast {

struct RdmSizes {
    int64_t B, S, T, K; // batch, rows of x, rows of y, columns
};

inline RdmSizes check_rdm(const torch::stable::Tensor& x, const std::optional<torch::stable::Tensor>& y,
                          const std::string& method) {
    STD_TORCH_CHECK(x.dim() == 3 && (!y || y->dim() == 3), "rdm: want x and y [batch, rows, columns]");
    const RdmSizes s{x.size(0), x.size(1), y ? y->size(1) : x.size(1), x.size(2)};
    STD_TORCH_CHECK(s.K >= 1 && (!y || (y->size(0) == s.B && y->size(2) == s.K)),
                    "rdm: want x and y with the same batch and at least one column");
    STD_TORCH_CHECK(method == "correlation" || method == "cosine" || method == "distance",
                    "rdm: method: want correlation, cosine or distance");
    return s;
}

inline torch::headeronly::ScalarType rdm_type(const torch::stable::Tensor& x,
                                              const std::optional<torch::stable::Tensor>& y) {
    using torch::headeronly::ScalarType;
    const bool wide = x.scalar_type() == ScalarType::Double || (y && y->scalar_type() == ScalarType::Double);
    return wide ? ScalarType::Double : ScalarType::Float;
}

// The matrix and its gradient, of `size` elements; method distance does without the matrix.
inline void check_matrix(const torch::stable::Tensor& grad, const std::optional<torch::stable::Tensor>& matrix,
                         const torch::stable::Tensor& x, const std::optional<torch::stable::Tensor>& y,
                         const std::string& method, int64_t size) {
    STD_TORCH_CHECK(grad.numel() == size && grad.scalar_type() == rdm_type(x, y),
                    "grad: want the shape and dtype of the matrix");
    STD_TORCH_CHECK(method == "distance" ||
                        (matrix && matrix->numel() == size && matrix->scalar_type() == rdm_type(x, y)),
                    "matrix: want what the forward pass returned");
}

} // namespace v1fast
