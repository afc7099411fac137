// Sizes of a readout's operands, and the check of one operand against them. v1fast/contracts says what the shapes
// mean. The checks here are for memory safety: a direct call of an op gets an error, not a read outside a tensor.
#pragma once

#include "torch_api.h"

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <vector>

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

// A tensor with repeated elements may have any size. This limit is larger than any memory, and small enough that the
// sizes in bytes of several such tensors can be added.
inline constexpr int64_t kMostElements = int64_t(1) << 48;

inline void check_count(std::initializer_list<int64_t> sizes, const char* name) {
    int64_t count = 1;
    bool overflows = false;
    for (int64_t size : sizes)
        overflows = overflows || __builtin_mul_overflow(count, size, &count);
    for (int64_t size : sizes)
        overflows = overflows && size != 0;
    STD_TORCH_CHECK(!overflows && count <= kMostElements, name, ": want fewer elements, no memory holds so many");
}

inline bool is_floating(const Tensor& tensor) {
    using torch::headeronly::ScalarType;
    const ScalarType type = tensor.scalar_type();
    return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
           type == ScalarType::Half;
}

inline void check_floating(const Tensor& tensor, const char* name) {
    STD_TORCH_CHECK(is_floating(tensor), name, ": want one of float64, float32, bfloat16, float16");
}

// Checks for these sizes and for a dtype that the kernels read.
inline void check_floats(const OptionalTensor& tensor, std::initializer_list<int64_t> want, const char* name) {
    if (!tensor)
        return;
    check_shape(*tensor, want, name);
    check_floating(*tensor, name);
}

inline void check_indices(const OptionalTensor& tensor, std::initializer_list<int64_t> want, const char* name) {
    if (!tensor)
        return;
    check_shape(*tensor, want, name);
    STD_TORCH_CHECK(tensor->scalar_type() == torch::headeronly::ScalarType::Long, name, ": want int64");
}

inline void check_image_offset(int64_t image_offset, int64_t images) {
    STD_TORCH_CHECK(image_offset >= 0 && images <= INT64_MAX - image_offset,
                    "image_offset: want at least 0, and image_offset + B of 64 bits");
}

inline void check_mask(const std::vector<bool>& output_mask, size_t gradients) {
    STD_TORCH_CHECK(output_mask.size() == gradients, "output_mask: want ", gradients, " entries");
}

// Pixels (with a border of one) and neurons are counted in 32 bits. Kernels divide by C.
inline void check_maps(const Tensor& features, const ReadoutSizes& s) {
    STD_TORCH_CHECK(s.C >= 1 && s.H >= 1 && s.W >= 1, "features: want [B, C, H, W] with C, H, W >= 1");
    STD_TORCH_CHECK(s.N <= INT32_MAX && s.H < INT32_MAX && s.W < INT32_MAX && (s.H + 1) * (s.W + 1) < INT32_MAX,
                    "N, (H + 1) (W + 1): want less than 2^31 each");
    check_floating(features, "features");
    check_count({s.C, s.H, s.W}, "features");
    check_count({s.B, s.C, s.H, s.W}, "features");
    check_count({s.B, s.N}, "[B, N]");
}

} // namespace v1fast
