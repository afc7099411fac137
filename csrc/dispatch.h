// The one list of dtypes that kernels read and write, and the instruction sets they are compiled for.
#pragma once

#include <torch/headeronly/core/Dispatch.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

// Runs the body with scalar_t as the C++ type of a floating dtype; any other dtype throws, naming `name`.
#define V1FAST_DISPATCH_FLOATING(dtype, name, ...)                                                                     \
    THO_DISPATCH_SWITCH(dtype, name,                                                                                   \
                        THO_DISPATCH_CASE(torch::headeronly::ScalarType::Float, __VA_ARGS__)                           \
                            THO_DISPATCH_CASE(torch::headeronly::ScalarType::Double, __VA_ARGS__)                      \
                                THO_DISPATCH_CASE(torch::headeronly::ScalarType::BFloat16, __VA_ARGS__)                \
                                    THO_DISPATCH_CASE(torch::headeronly::ScalarType::Half, __VA_ARGS__))

// One compilation per instruction set (AVX-512, AVX2 with FMA, what the ABI guarantees), chosen by the loader at run
// time. It must stand on a plain function; the templates it calls are inlined into each of its clones.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define V1FAST_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define V1FAST_CLONES
#endif
#define V1FAST_INLINE inline __attribute__((always_inline))
