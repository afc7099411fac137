// The functions of torch that the kernels call, under the names of its stable ABI, and how an op is registered. The
// kernels include no other header of torch.
//
// Stable ABI: one binary for every torch from TORCH_TARGET_VERSION on, 2.10. V1FAST_ATEN: the same names on ATen, for
// one release of torch from 2.5 to 2.9.
#pragma once

#if defined(V1FAST_ATEN)

#include "torch_api_aten.h"

#else

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <optional>

#if defined(__linux__)
// torch has this function from 2.11 on, so the headers do not declare it for 2.10. Weak: its address is null where
// torch lacks it.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t dim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* result, int32_t layout, const uint8_t* opaque_metadata,
    int64_t opaque_metadata_size, void (*deleter)(void*, void*), void* context);
#endif

namespace v1fast {

// A CPU tensor like `like` whose elements are in `data`; the tensor's last user calls release(data, context). Nothing,
// and no call of release, where this torch cannot make such a tensor.
inline std::optional<torch::stable::Tensor> owning_tensor([[maybe_unused]] void* data,
                                                          [[maybe_unused]] const torch::stable::Tensor& like,
                                                          [[maybe_unused]] void (*release)(void*, void*),
                                                          [[maybe_unused]] void* context) {
#if defined(__linux__)
    if (torch_from_blob) {
        int32_t dtype = 0;
        AtenTensorHandle result = nullptr;
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
        TORCH_ERROR_CODE_CHECK(torch_from_blob(data, like.dim(), like.sizes().data(), like.strides().data(), 0, dtype,
                                               aoti_torch_device_type_cpu(), -1, &result, aoti_torch_layout_strided(),
                                               nullptr, 0, release, context));
        return torch::stable::Tensor(result);
    }
#endif
    return std::nullopt;
}

} // namespace v1fast

#endif

namespace v1fast {

// The tensor itself where it is so already: a call of torch's own function takes a microsecond to find that out.
inline torch::stable::Tensor as_type(const torch::stable::Tensor& tensor, torch::headeronly::ScalarType type) {
    return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}
inline torch::stable::Tensor as_contiguous(const torch::stable::Tensor& tensor) {
    return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

} // namespace v1fast
