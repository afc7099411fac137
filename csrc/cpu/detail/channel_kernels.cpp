#include "channel_kernels.h"

#include "../../philox.h"
#include "isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define V1FAST_ISA_FILE "channel_kernels.inc"
#include "foreach_isa.h"

namespace v1fast {

template <class T>
const ChannelKernels<T>& channel_kernels() {
    static const ChannelKernels<T> best = V1FAST_PICK_ISA(channel_kernels_of_isa<T>());
    return best;
}

template const ChannelKernels<float>& channel_kernels<float>();
template const ChannelKernels<double>& channel_kernels<double>();

DrawNormals draw_normals() { return V1FAST_PICK_ISA(draw_normals_of_isa); }

} // namespace v1fast
