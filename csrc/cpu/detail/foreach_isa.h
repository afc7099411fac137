// Compiles the file V1FAST_ISA_FILE once for each instruction set, in the namespaces v1fast::avx512, v1fast::avx2 and
// v1fast::baseline. V1FAST_VECTOR_BYTES is the width of a vector. V1FAST_PICK_ISA(member) is that member of the best
// instruction set of this machine. Include all other headers first.
#if !defined(V1FAST_ISA_FILE)
#error "define V1FAST_ISA_FILE before including foreach_isa.h"
#endif

#if defined(__x86_64__) && defined(__GNUC__) // which clang defines, too
#define V1FAST_ISA avx512
#define V1FAST_VECTOR_BYTES 64
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v4"))), apply_to = function)
#include V1FAST_ISA_FILE
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#include V1FAST_ISA_FILE
#pragma GCC pop_options
#endif
#undef V1FAST_ISA
#undef V1FAST_VECTOR_BYTES

#define V1FAST_ISA avx2
#define V1FAST_VECTOR_BYTES 32
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v3"))), apply_to = function)
#include V1FAST_ISA_FILE
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#include V1FAST_ISA_FILE
#pragma GCC pop_options
#endif
#undef V1FAST_ISA
#undef V1FAST_VECTOR_BYTES

#define V1FAST_PICK_ISA(member)                                                                                        \
    (v1fast::best_isa() == v1fast::Isa::avx512 ? v1fast::avx512::member                                                \
     : v1fast::best_isa() == v1fast::Isa::avx2 ? v1fast::avx2::member                                                  \
                                               : v1fast::baseline::member)
#else
#define V1FAST_PICK_ISA(member) v1fast::baseline::member
#endif

#define V1FAST_ISA baseline
#define V1FAST_VECTOR_BYTES 16
#include V1FAST_ISA_FILE
#undef V1FAST_ISA
#undef V1FAST_VECTOR_BYTES
