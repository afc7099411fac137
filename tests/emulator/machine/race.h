// Accesses to shared memory by two threads with no barrier between them: found by who touched each byte last.
#pragma once
#include "machine.h"

namespace emulator {

enum class Access : u8 { read, write, update };

// Whether what `touch` says happened before what `thread` does now, whatever the order in which threads run.
inline bool ordered(const Touch& touch, const Thread& thread) {
    const Block& block = *thread.block;
    if (touch.epoch != block.epoch || touch.thread == thread.index)
        return true;
    return touch.thread / 32 == thread.index / 32 && touch.warp_epoch != block.warp_epochs[thread.index / 32];
}

inline Touch touch_of(const Thread& thread, Access access) {
    const Block& block = *thread.block;
    return {block.epoch, block.warp_epochs[thread.index / 32], thread.index, access == Access::update, false};
}

[[noreturn]] inline void race(const Step* step, const Thread& thread, u64 offset, const char* what, u32 other) {
    fault("DataRace", step, thread,
          "shared memory at offset " + std::to_string(offset) + ": no barrier since thread " + std::to_string(other) +
              " " + what + " it");
}

// To be called before the access; `value` is what a write will leave. A value that is there already disturbs nobody.
inline void touch(const Step* step, Thread& thread, const u8* at, u64 bytes, Access access,
                  const void* value = nullptr) {
    Block& block = *thread.block;
    if (block.touches.empty() || at < block.shared.data() || at >= block.shared.data() + block.shared.size())
        return;
    const bool changes = access != Access::read && !(value && std::memcmp(at, value, bytes) == 0);
    const u64 offset = u64(at - block.shared.data());
    for (u64 i = offset; i < offset + bytes; ++i) {
        Touches& byte = block.touches[i];
        const bool both_atomic = byte.write.atomic && access == Access::update;
        if ((changes || access == Access::read) && !both_atomic && !ordered(byte.write, thread))
            race(step, thread, i, "wrote", byte.write.thread);
        if (access == Access::read) {
            const bool alone = byte.read.epoch != block.epoch || (byte.read.thread == thread.index && !byte.read.many);
            const bool same_warp = byte.read.thread / 32 == thread.index / 32;
            const bool many = !alone && (byte.read.many || !same_warp);
            byte.read = touch_of(thread, access);
            byte.read.many = many;
        } else {
            const bool in_doubt = byte.read.many && byte.read.epoch == block.epoch;
            if (changes && (in_doubt || !ordered(byte.read, thread)))
                race(step, thread, i, "read", byte.read.thread);
            byte.write = touch_of(thread, access);
        }
    }
}

} // namespace emulator
