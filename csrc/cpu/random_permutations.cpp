// Random permutations on the CPU. v1fast/reference/random_permutations.py defines which ones.
#include "../boxed.h"
#include "../philox.h"
#include "../torch_api.h"

#include <numeric>
#include <utility>
#include <vector>

namespace v1fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// words: memory for size - 1 of them and three more.
void permute(uint64_t key, uint32_t number, int64_t size, uint32_t* words, int32_t* permutation) {
    const uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
    for (int64_t block = 0; 4 * block < size - 1; ++block) {
        const Words drawn = philox4x32_10({static_cast<uint32_t>(block), number, 0, 1}, key0, key1);
        words[4 * block] = drawn.w0;
        words[4 * block + 1] = drawn.w1;
        words[4 * block + 2] = drawn.w2;
        words[4 * block + 3] = drawn.w3;
    }
    std::iota(permutation, permutation + size, 0);
    for (int64_t i = size - 1; i > 0; --i)
        std::swap(permutation[i], permutation[static_cast<uint64_t>(*words++) * static_cast<uint64_t>(i + 1) >> 32]);
}

Tensor random_permutations(const Tensor& seed, int64_t count, int64_t size) {
    STD_TORCH_CHECK(seed.dim() == 1 && seed.size(0) == 1 && seed.scalar_type() == ScalarType::Long,
                    "random_permutations: seed: want [1] int64");
    STD_TORCH_CHECK(count >= 0 && size >= 0 && count < (int64_t(1) << 32) && size < (int64_t(1) << 31),
                    "random_permutations: count, size: want at least 0, and less than 2^32 and 2^31");
    const Tensor out = torch::stable::new_empty(seed, {count, size}, ScalarType::Int);
    if (count == 0 || size == 0)
        return out;
    const uint64_t key = static_cast<uint64_t>(*seed.const_data_ptr<int64_t>());
    int32_t* data = out.mutable_data_ptr<int32_t>();
    torch::stable::parallel_for(0, count, 64, [&](int64_t begin, int64_t end) {
        std::vector<uint32_t> words(static_cast<size_t>(size + 3));
        for (int64_t k = begin; k < end; ++k)
            permute(key, static_cast<uint32_t>(k), size, words.data(), data + k * size);
    });
    return out;
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(v1fast, CPU, m) { m.impl("random_permutations", V1FAST_BOX(random_permutations)); }

} // namespace v1fast
