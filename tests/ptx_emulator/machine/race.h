// Accesses to shared memory by two threads without a barrier between them, found from the last accesses to each byte.
#pragma once
#include "machine.h"

namespace emulator {

enum class Access : u8 { read, write, update };

// Whether the access in `touch` happened before this access of `thread`, whatever the order in which threads run.
inline bool ordered(const Touch& touch, const Thread& thread) {
    const Block& block = *thread.block;
    if (touch.epoch != block.epoch)
        return true;
    if (touch.by == By::several_warps || touch.thread / 32 != thread.index / 32)
        return false;
    if (touch.warp_epoch != block.warp_epochs[thread.index / 32])
        return true;
    return touch.by == By::one_thread && touch.thread == thread.index;
}

// The record of an access. `before` is the last one of its kind.
inline Touch recorded(const Touch& before, const Thread& thread, Access access) {
    const Block& block = *thread.block;
    By by = By::one_thread;
    if (before.epoch == block.epoch && !ordered(before, thread))
        by = before.by != By::several_warps && before.thread / 32 == thread.index / 32 ? By::one_warp
                                                                                       : By::several_warps;
    return {block.epoch, block.warp_epochs[thread.index / 32], thread.index, by, access == Access::update};
}

[[noreturn]] inline void race(const Step* step, const Thread& thread, u64 offset, const char* what, u32 other) {
    fault("DataRace", step, thread,
          "shared memory at offset " + std::to_string(offset) + ": no barrier since thread " + std::to_string(other) +
              " " + what + " it");
}

// Call this before the access. `value` is what a write will store. Threads may write the same value twice, and a value
// that has been there since the last barrier does not disturb a reader.
inline void touch(const Step* step, Thread& thread, const u8* at, u64 bytes, Access access,
                  const void* value = nullptr) {
    Block& block = *thread.block;
    const u8* shared = block.shared.data();
    if (block.touches.empty() || at < shared || at >= shared + block.shared.size())
        return;
    const bool reads = access == Access::read, same = value && std::memcmp(at, value, bytes) == 0;
    for (u64 i = u64(at - shared), end = i + bytes; i < end; ++i) {
        Touches& byte = block.touches[i];
        const bool both_atomic = byte.write.atomic && access == Access::update;
        const bool disturbs = !reads && (!same || byte.write.epoch == block.epoch);
        if (!same && !both_atomic && !ordered(byte.write, thread))
            race(step, thread, i, "wrote", byte.write.thread);
        if (disturbs && !ordered(byte.read, thread))
            race(step, thread, i, "read", byte.read.thread);
        Touch& last = reads ? byte.read : byte.write;
        last = recorded(last, thread, access);
    }
}

} // namespace emulator
