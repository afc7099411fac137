// Row sums of condensed matrices on the CPU. v1fast/reference/condensed_row_sums.py defines them.
#include "../boxed.h"
#include "../philox.h" // V1FAST_INLINE
#include "../torch_api.h"
#include "detail/isa.h"

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define V1FAST_ISA_FILE "condensed_row_sums.inc"
#include "detail/foreach_isa.h"

namespace v1fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
void sum_rows(const Tensor& x, int64_t S, double* sums) {
    static const auto sum = V1FAST_PICK_ISA(condensed_row_sums<T>);
    const T* values = x.const_data_ptr<T>();
    torch::stable::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
        for (int64_t m = begin; m < end; ++m) {
            std::fill_n(sums + m * S, S, 0);
            sum(values + m * x.size(1), S, sums + m * S);
        }
    });
}

Tensor condensed_row_sums_op(const Tensor& x, int64_t S) {
    STD_TORCH_CHECK(x.dim() == 2 && S >= 0 && S < (int64_t(1) << 31) && x.size(1) == S * (S - 1) / 2,
                    "condensed_row_sums: want x [M, S (S - 1) / 2]");
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
                    "condensed_row_sums: want x float32 or float64");
    const Tensor out = torch::stable::new_empty(x, {x.size(0), S}, ScalarType::Double);
    if (out.numel() == 0)
        return out;
    const Tensor values = as_contiguous(x);
    double* sums = out.mutable_data_ptr<double>();
    x.scalar_type() == ScalarType::Float ? sum_rows<float>(values, S, sums) : sum_rows<double>(values, S, sums);
    return out;
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(v1fast, CPU, m) { m.impl("condensed_row_sums", V1FAST_BOX(condensed_row_sums_op)); }

} // namespace v1fast
