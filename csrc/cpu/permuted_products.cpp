// Null distributions of label permutations on the CPU. v1fast/reference/permuted_products.py defines them.
#include "../boxed.h"
#include "../philox.h" // V1FAST_INLINE
#include "../torch_api.h"
#include "detail/isa.h"
#include "detail/samples.h"

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace v1fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct PermutedFactors {
    int64_t S, stride;  // rows; columns, padded to whole vectors
    const float* pairs; // for each group of rows from i on: the columns j > i of a, 0 where row >= column
    const float* b;     // [S, stride]
};

// What one instruction set provides. columns: memory for [stride, lanes].
struct PermutedKernel {
    int64_t lanes; // rows in a group
    double (*product)(const PermutedFactors&, const int32_t* permutation, float* columns);
};

} // namespace v1fast

#define V1FAST_ISA_FILE "permuted_products.inc"
#include "detail/foreach_isa.h"

namespace v1fast {
namespace {

AlignedArray<float> pack_pairs(const float* a, int64_t S, int64_t lanes) {
    AlignedArray<float> pairs((S + lanes) * (S + lanes) / 2);
    float* to = pairs.get();
    for (int64_t i = 0; i < S; i += lanes)
        for (int64_t j = i + 1; j < S; ++j)
            for (int64_t r = i; r < i + lanes; ++r)
                *to++ = r < j ? a[r * S + j] : 0;
    return pairs;
}

AlignedArray<float> pad_rows(const float* b, int64_t S, int64_t stride) {
    AlignedArray<float> padded(S * stride);
    for (int64_t i = 0; i < S; ++i) {
        std::copy_n(b + i * S, S, padded.get() + i * stride);
        std::fill_n(padded.get() + i * stride + S, stride - S, 0);
    }
    return padded;
}

void check_places(const int32_t* permutations, int64_t count, int64_t S) {
    const bool within = std::all_of(permutations, permutations + count, [S](int32_t p) { return p >= 0 && p < S; });
    STD_TORCH_CHECK(within, "permuted_products: permutations: want 0 .. S - 1");
}

Tensor permuted_products(const Tensor& a, const Tensor& b, const Tensor& permutations) {
    STD_TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && permutations.dim() == 2,
                    "permuted_products: want a, b [S, S] and permutations [P, S]");
    const int64_t S = a.size(0), P = permutations.size(0);
    STD_TORCH_CHECK(a.size(1) == S && b.size(0) == S && b.size(1) == S && permutations.size(1) == S && S < (1 << 28),
                    "permuted_products: want a, b [S, S] and permutations [P, S]");
    STD_TORCH_CHECK(a.scalar_type() == ScalarType::Float && b.scalar_type() == ScalarType::Float &&
                        permutations.scalar_type() == ScalarType::Int,
                    "permuted_products: want a, b float32 and permutations int32");
    if (P == 0 || S == 0)
        return torch::stable::new_zeros(a, {P}, ScalarType::Double);
    const Tensor out = torch::stable::new_empty(a, {P}, ScalarType::Double);
    static const PermutedKernel kernel = V1FAST_PICK_ISA(permuted_kernel());
    const int64_t stride = (S + kernel.lanes - 1) / kernel.lanes * kernel.lanes;
    const Tensor kept = as_contiguous(permutations);
    const int32_t* orders = kept.const_data_ptr<int32_t>();
    check_places(orders, P * S, S);
    const AlignedArray<float> pairs = pack_pairs(as_contiguous(a).const_data_ptr<float>(), S, kernel.lanes);
    const AlignedArray<float> rows = pad_rows(as_contiguous(b).const_data_ptr<float>(), S, stride);
    const PermutedFactors factors{S, stride, pairs.get(), rows.get()};
    double* data = out.mutable_data_ptr<double>();
    torch::stable::parallel_for(0, P, 1, [&](int64_t begin, int64_t end) {
        const AlignedArray<float> columns(stride * kernel.lanes);
        for (int64_t k = begin; k < end; ++k)
            data[k] = kernel.product(factors, orders + k * S, columns.get());
    });
    return out;
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(v1fast, CPU, m) { m.impl("permuted_products", V1FAST_BOX(permuted_products)); }

} // namespace v1fast
