// Memory for large results. Fresh memory from the system arrives page by page, and each page costs a fault and is
// cleared. For the gradient of a large feature map, that costs more than the arithmetic. Allocators keep freed memory
// for the next call, but glibc's returns blocks of 32 MiB and more to the system at once. So the last freed block of
// that size is kept here for the next call. It is marked as free for the system to take, so other uses do not lack it.
#pragma once

#include "../../torch_api.h"

#include <atomic>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace v1fast {

using torch::stable::Tensor;

inline constexpr int64_t kLargeBytes = 32 << 20;

// Huge pages make the faults five times cheaper. This is only advice: if it fails, nothing changes.
inline void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t kHugePage = 2 << 20;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~(kHugePage - 1);
    if (end > begin)
        madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

#if defined(__linux__) && defined(MADV_FREE)

// A separate mapping, which describes itself by the numbers beside it.
struct LargeBlock {
    void* data;
    int64_t bytes;
    bool zeros; // fresh from the system

    static LargeBlock* map(int64_t bytes) {
        void* data =
            mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data == MAP_FAILED)
            return nullptr;
        ask_for_huge_pages(data, bytes);
        return new LargeBlock{data, bytes, true};
    }
    static void unmap(LargeBlock* block) {
        if (!block)
            return;
        munmap(block->data, static_cast<size_t>(block->bytes));
        delete block;
    }
};

// The block that was freed last. There is no lock: a process that forks while a lock is held would hang.
class KeptBlock {
    std::atomic<LargeBlock*> block_{nullptr};

public:
    // A block of at least `bytes` that is not much larger. nullptr if the system gives none.
    LargeBlock* take(int64_t bytes) {
        LargeBlock* kept = block_.exchange(nullptr);
        if (kept && kept->bytes >= bytes && kept->bytes / 2 <= bytes)
            return kept;
        LargeBlock::unmap(kept);
        return LargeBlock::map(bytes);
    }
    void give(LargeBlock* block) {
        madvise(block->data, static_cast<size_t>(block->bytes), MADV_FREE);
        block->zeros = false;
        LargeBlock::unmap(block_.exchange(block));
    }
    void release() { LargeBlock::unmap(block_.exchange(nullptr)); }
};

inline KeptBlock& kept_block() {
    static KeptBlock* const kept = new KeptBlock; // never destroyed: tensors may be freed later than statics
    return *kept;
}

inline void release_large_memory() { kept_block().release(); }

#else

inline void release_large_memory() {}

#endif

struct Uninitialised {
    Tensor tensor;
    bool zeros; // false: the contents are unknown
};

// Like torch.empty_like. dense: the elements of `like` fill one block of memory.
inline Uninitialised uninitialised_like(const Tensor& like, [[maybe_unused]] bool dense) {
    const int64_t bytes = like.numel() * static_cast<int64_t>(like.element_size());
#if defined(__linux__) && defined(MADV_FREE)
    if (LargeBlock* block = dense && bytes >= kLargeBytes ? kept_block().take(bytes) : nullptr) {
        const bool zeros = block->zeros;
        const auto give_back = [](void*, void* block) { kept_block().give(static_cast<LargeBlock*>(block)); };
        if (std::optional<Tensor> tensor = owning_tensor(block->data, like, give_back, block))
            return {*tensor, zeros};
        LargeBlock::unmap(block);
    }
#endif
    Uninitialised out{torch::stable::empty_like(like), false};
    ask_for_huge_pages(out.tensor.mutable_data_ptr(), bytes);
    return out;
}

} // namespace v1fast
