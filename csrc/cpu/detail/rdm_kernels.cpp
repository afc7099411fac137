#include "rdm_kernels.h"

#include "../../philox.h"
#include "isa.h"

#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define V1FAST_ISA_FILE "rdm_kernels.inc"
#include "foreach_isa.h"

namespace v1fast {

template <class T>
const RdmKernels<T>& rdm_kernels() {
    static const RdmKernels<T> best = V1FAST_PICK_ISA(rdm_kernels_of_isa<T>());
    return best;
}

template const RdmKernels<float>& rdm_kernels<float>();
template const RdmKernels<double>& rdm_kernels<double>();

} // namespace v1fast
