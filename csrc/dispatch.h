// The one list of dtypes that kernels read and write.
#pragma once

#include "torch_api.h"

// Runs the body with scalar_t as the C++ type of a floating dtype. Any other dtype throws an error that names `name`.
#define V1FAST_DISPATCH_FLOATING(dtype, name, ...)                                                                     \
    THO_DISPATCH_SWITCH(dtype, name,                                                                                   \
                        THO_DISPATCH_CASE(torch::headeronly::ScalarType::Float, __VA_ARGS__)                           \
                            THO_DISPATCH_CASE(torch::headeronly::ScalarType::Double, __VA_ARGS__)                      \
                                THO_DISPATCH_CASE(torch::headeronly::ScalarType::BFloat16, __VA_ARGS__)                \
                                    THO_DISPATCH_CASE(torch::headeronly::ScalarType::Half, __VA_ARGS__))
