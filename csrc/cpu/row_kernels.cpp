#include "row_kernels.h"

#include "../philox.h"
#include "isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define V1FAST_ISA_FILE "row_kernels.inc"
#include "foreach_isa.h"

namespace v1fast {

template <class T>
const RowKernels<T>& row_kernels() {
    static const RowKernels<T> best = V1FAST_PICK_ISA(row_kernels_of_isa<T>());
    return best;
}

template const RowKernels<float>& row_kernels<float>();
template const RowKernels<double>& row_kernels<double>();

DrawNormals draw_normals() { return V1FAST_PICK_ISA(draw_normals_of_isa); }

} // namespace v1fast
