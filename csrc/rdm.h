// What a kernel of the dissimilarity matrices may rely on. v1fast/contracts says what the shapes mean. The checks here
// are for memory safety: a direct call of the op gets an error, not a read outside a tensor.
#pragma once

#include "sizes.h"

#include <functional>
#include <string>

namespace v1fast {

struct RdmSizes {
    int64_t B, S, T, K; // batch, rows of x, rows of y, columns
};

inline RdmSizes check_rdm(const Tensor& x, const OptionalTensor& y, const std::string& method,
                          const std::string& accuracy) {
    STD_TORCH_CHECK(x.dim() == 3 && (!y || y->dim() == 3), "rdm: want x and y [batch, rows, columns]");
    const RdmSizes s{x.size(0), x.size(1), y ? y->size(1) : x.size(1), x.size(2)};
    STD_TORCH_CHECK(s.K >= 1 && (!y || (y->size(0) == s.B && y->size(2) == s.K)),
                    "rdm: want x and y with the same batch and at least one column");
    // Then their product, the number of pairs, fits 64 bits.
    STD_TORCH_CHECK(s.S <= INT32_MAX && s.T <= INT32_MAX, "rdm: want less than 2^31 rows");
    check_floating(x, "x");
    if (y)
        check_floating(*y, "y");
    STD_TORCH_CHECK(method == "correlation" || method == "cosine" || method == "euclidean",
                    "rdm: method: want correlation, cosine or euclidean");
    STD_TORCH_CHECK(accuracy == "float32" || accuracy == "high" || accuracy == "bfloat16",
                    "rdm: accuracy: want float32, high or bfloat16");
    return s;
}

// Like check_rdm, for one set of rows or, for distances, for two paired sets.
inline RdmSizes check_paired(const Tensor& x, const OptionalTensor& y, const std::string& method,
                             const std::string& accuracy) {
    const RdmSizes s = check_rdm(x, y, method, accuracy);
    STD_TORCH_CHECK(s.S == s.T, "rdm: want x and y with the same number of rows");
    STD_TORCH_CHECK(!y || method == "euclidean", "rdm: y: want it for method euclidean alone");
    return s;
}

inline int64_t pairs_of(int64_t S) { return S * (S - 1) / 2; }

inline torch::headeronly::ScalarType rdm_type(const Tensor& x, const OptionalTensor& y) {
    using torch::headeronly::ScalarType;
    const bool wide = x.scalar_type() == ScalarType::Double || (y && y->scalar_type() == ScalarType::Double);
    return wide ? ScalarType::Double : ScalarType::Float;
}

// The matrix and its gradient, of these sizes; method euclidean does without the matrix.
inline void check_matrix(const Tensor& grad, const OptionalTensor& matrix, const Tensor& x, const OptionalTensor& y,
                         const std::string& method, std::initializer_list<int64_t> sizes) {
    const auto check = [&](const Tensor& tensor, const char* name) {
        check_shape(tensor, sizes, name);
        STD_TORCH_CHECK(tensor.scalar_type() == rdm_type(x, y), name, ": want the dtype of the matrix");
    };
    check(grad, "grad");
    STD_TORCH_CHECK(matrix || method == "euclidean", "matrix: want what the forward pass returned");
    if (matrix)
        check(*matrix, "matrix");
}

// `out`, which is contiguous, must not overlap the range from the first to the last byte of an input.
inline void check_apart(const Tensor& out, const OptionalTensor& read, const char* name) {
    if (!read || out.numel() == 0 || read->numel() == 0)
        return;
    int64_t last = 0;
    for (int64_t axis = 0; axis < read->dim(); ++axis)
        last += (read->size(axis) - 1) * read->stride(axis);
    const auto end = [](const Tensor& tensor, int64_t elements) {
        return static_cast<const char*>(tensor.const_data_ptr()) +
               elements * static_cast<int64_t>(tensor.element_size());
    };
    const std::less_equal<const char*> before;
    STD_TORCH_CHECK(before(end(out, out.numel()), end(*read, 0)) || before(end(*read, last + 1), end(out, 0)),
                    "out: want memory of its own, got some of that of ", name);
}

} // namespace v1fast
