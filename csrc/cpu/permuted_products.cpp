// Null distributions of label permutations on the CPU. See v1fast/reference/permuted_products.py for what they are.
#include "../philox.h" // V1FAST_INLINE
#include "isa.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace v1fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct PermutedFactors {
    int64_t S, stride;  // rows; columns with those that fill up a vector
    const float* pairs; // a[i .. i + 3, j] for each fourth i and each j > i, where row < column, else 0
    const float* b;     // [S, stride]
};

} // namespace v1fast

#define V1FAST_ISA_FILE "permuted_products.inc"
#include "foreach_isa.h"

namespace v1fast {
namespace {

std::vector<float> pack_pairs(const float* a, int64_t S) {
    std::vector<float> pairs;
    pairs.reserve(static_cast<size_t>(S * (S + 8) / 2));
    for (int64_t i = 0; i < S; i += 4)
        for (int64_t j = i + 1; j < S; ++j)
            for (int64_t r = i; r < i + 4; ++r)
                pairs.push_back(r < j ? a[r * S + j] : 0);
    return pairs;
}

std::vector<float> pad_rows(const float* b, int64_t S, int64_t stride) {
    std::vector<float> padded(static_cast<size_t>(S * stride));
    for (int64_t i = 0; i < S; ++i)
        std::copy_n(b + i * S, S, padded.data() + i * stride);
    return padded;
}

std::vector<int32_t> checked(const Tensor& permutations, int64_t S) {
    const int64_t* given = permutations.const_data_ptr<int64_t>();
    std::vector<int32_t> found(static_cast<size_t>(permutations.numel()));
    for (size_t i = 0; i < found.size(); ++i) {
        STD_TORCH_CHECK(given[i] >= 0 && given[i] < S, "permuted_products: permutations: want 0 .. S - 1");
        found[i] = static_cast<int32_t>(given[i]);
    }
    return found;
}

Tensor permuted_products(const Tensor& a, const Tensor& b, const Tensor& permutations) {
    STD_TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && permutations.dim() == 2,
                    "permuted_products: want a, b [S, S] and permutations [P, S]");
    const int64_t S = a.size(0), P = permutations.size(0);
    STD_TORCH_CHECK(a.size(1) == S && b.size(0) == S && b.size(1) == S && permutations.size(1) == S && S < (1 << 28),
                    "permuted_products: want a, b [S, S] and permutations [P, S]");
    STD_TORCH_CHECK(a.scalar_type() == ScalarType::Float && b.scalar_type() == ScalarType::Float &&
                        permutations.scalar_type() == ScalarType::Long,
                    "permuted_products: want a, b float32 and permutations int64");
    const Tensor out = torch::stable::new_empty(a, {P}, ScalarType::Double);
    if (P == 0)
        return out;
    const int64_t stride = (S + 15) / 16 * 16;
    const std::vector<int32_t> orders = checked(torch::stable::contiguous(permutations), S);
    const std::vector<float> pairs = pack_pairs(torch::stable::contiguous(a).const_data_ptr<float>(), S);
    const std::vector<float> rows = pad_rows(torch::stable::contiguous(b).const_data_ptr<float>(), S, stride);
    const PermutedFactors factors{S, stride, pairs.data(), rows.data()};
    static const auto product = V1FAST_PICK_ISA(permuted_product);
    double* data = out.mutable_data_ptr<double>();
    torch::stable::parallel_for(0, P, 1, [&](int64_t begin, int64_t end) {
        std::vector<float> four_rows(static_cast<size_t>(4 * stride));
        std::vector<int32_t> places(static_cast<size_t>(S));
        for (int64_t k = begin; k < end; ++k)
            data[k] = product(factors, orders.data() + k * S, four_rows.data(), places.data());
    });
    return out;
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(v1fast, CPU, m) { m.impl("permuted_products", TORCH_BOX(&permuted_products)); }

} // namespace v1fast
