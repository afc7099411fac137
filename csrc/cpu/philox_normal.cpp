// The normals that the Gaussian readout draws, on the CPU. v1fast/reference/philox.py defines them.
#include "../boxed.h"
#include "detail/channel_kernels.h"

namespace v1fast {
namespace {

Tensor philox_normal_op(const Tensor& seed, int64_t images, int64_t neurons, OptionalTensor neuron_index,
                        int64_t image_offset) {
    check_indices(seed, {1}, "seed");
    STD_TORCH_CHECK(images >= 0 && neurons >= 0, "philox_normal: images, neurons: want at least 0");
    check_indices(neuron_index, {neurons}, "neuron_index");
    check_image_offset(image_offset, images);
    Tensor out = torch::stable::new_empty(seed, {images, neurons, 2}, ScalarType::Float);
    if (images == 0 || neurons == 0)
        return out;
    if (neuron_index)
        neuron_index = as_contiguous(*neuron_index);
    std::vector<uint32_t> index(static_cast<size_t>(neurons));
    for (int64_t n = 0; n < neurons; ++n)
        index[n] = static_cast<uint32_t>(neuron_index ? neuron_index->const_data_ptr<int64_t>()[n] : n);
    float* data = out.mutable_data_ptr<float>();
    const uint64_t key = static_cast<uint64_t>(*seed.const_data_ptr<int64_t>());
    const auto draw = draw_normals();
    torch::stable::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            draw(key, index.data(), image_offset + b, neurons, data + b * neurons * 2);
    });
    return out;
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(v1fast, CPU, m) { m.impl("philox_normal", V1FAST_BOX(philox_normal_op)); }

} // namespace v1fast
