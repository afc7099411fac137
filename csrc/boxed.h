// How an op's kernel is handed to torch.
#pragma once

#include "torch_api.h"

#include <new>
#include <stdexcept>
#include <utility>

namespace v1fast {

// The kernel. If memory runs out, it throws as torch's own ops do: a RuntimeError in Python.
template <auto kKernel>
struct Boxed;

template <class Result, class... Arguments, Result (*kKernel)(Arguments...)>
struct Boxed<kKernel> {
    static Result call(Arguments... arguments) {
        try {
            return kKernel(std::forward<Arguments>(arguments)...);
        } catch (const std::bad_alloc&) {
            STD_TORCH_CHECK(false, "not enough memory");
        } catch (const std::length_error&) {
            STD_TORCH_CHECK(false, "not enough memory: no array is so long");
        }
        std::terminate(); // STD_TORCH_CHECK has thrown
    }
};

} // namespace v1fast

#define V1FAST_BOX(kernel) TORCH_BOX((&v1fast::Boxed<&kernel>::call))
