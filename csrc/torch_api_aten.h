// torch_api.h for torch 2.5 to 2.9: what later releases offer as a stable ABI, by the same names, on ATen. What they
// already have of it, in torch/headeronly, is taken from there.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <cstdint>
#include <optional>
#include <vector>

#if __has_include(<torch/headeronly/core/ScalarType.h>)
#include <torch/headeronly/core/ScalarType.h>
#else
namespace torch::headeronly {
using c10::ScalarType;
}
#endif

#ifndef STD_TORCH_CHECK
#define STD_TORCH_CHECK TORCH_CHECK
#endif
#ifndef THO_DISPATCH_SWITCH
#define THO_DISPATCH_SWITCH AT_DISPATCH_SWITCH
#define THO_DISPATCH_CASE AT_DISPATCH_CASE
#endif
#define STABLE_TORCH_LIBRARY_IMPL TORCH_LIBRARY_IMPL
#define TORCH_BOX(kernel) (&v1fast::Registered<kernel>::call)

namespace v1fast {

// An argument as the dispatcher passes it, and as the kernels take it.
template <class T>
struct Passed {
    using Type = T;
};
template <>
struct Passed<std::vector<bool>> {
    using Type = c10::List<bool>;
};
template <>
struct Passed<const std::vector<bool>&> : Passed<std::vector<bool>> {};

template <class T>
T&& taken(T& passed) {
    return static_cast<T&&>(passed);
}
inline std::vector<bool> taken(c10::List<bool>& passed) { return {passed.begin(), passed.end()}; }

template <auto kKernel>
struct Registered;

template <class Result, class... Arguments, Result (*kKernel)(Arguments...)>
struct Registered<kKernel> {
    static Result call(typename Passed<Arguments>::Type... passed) { return kKernel(taken(passed)...); }
};

} // namespace v1fast

namespace torch::stable {

using at::get_num_threads;
using at::parallel_for;
using at::Tensor;

inline Tensor contiguous(const Tensor& x) { return x.contiguous(); }
inline Tensor empty_like(const Tensor& x) { return at::empty_like(x); }
inline Tensor new_empty(const Tensor& x, at::IntArrayRef sizes,
                        std::optional<torch::headeronly::ScalarType> dtype = std::nullopt) {
    return x.new_empty(sizes, dtype ? x.options().dtype(*dtype) : x.options());
}
inline Tensor new_zeros(const Tensor& x, at::IntArrayRef sizes, torch::headeronly::ScalarType dtype) {
    return x.new_zeros(sizes, x.options().dtype(dtype));
}
inline Tensor to(const Tensor& x, torch::headeronly::ScalarType dtype) { return x.to(dtype); }
inline Tensor view(const Tensor& x, at::IntArrayRef sizes) { return x.view(sizes); }
inline Tensor narrow(const Tensor& x, int64_t axis, int64_t start, int64_t length) {
    return x.narrow(axis, start, length);
}
inline Tensor& zero_(Tensor& x) { return x.zero_(); }

} // namespace torch::stable

namespace v1fast {

// A CPU tensor like `like` whose elements are in `data`; the tensor's last user calls release(data, context).
inline std::optional<at::Tensor> owning_tensor(void* data, const at::Tensor& like, void (*release)(void*, void*),
                                               void* context) {
    return at::from_blob(
        data, like.sizes(), like.strides(), [=](void* freed) { release(freed, context); }, like.options());
}

} // namespace v1fast
