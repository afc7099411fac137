// Operations that the lanes of a warp do together.
#pragma once
#include "machine.h"

namespace emulator {

// Runs the operation of the lanes in `mask` when the last of them arrives. `lanes` is the warp's first thread.
using Together = void (*)(const Step* step, Thread* lanes, u32 mask);

// Waits for the other lanes of `mask` at exactly this step: the compiler may not duplicate such an instruction.
inline const Step* meet(const Step* step, Thread& thread, u32 mask, Together together) {
    auto& threads = thread.block->threads;
    Thread* lanes = &threads[thread.index - thread.lane];
    const u32 present = std::min<u32>(32, u32(threads.data() + threads.size() - lanes));
    mask &= u32((u64(1) << present) - 1);
    if (!(mask >> thread.lane & 1))
        fault("Divergence", step, thread, "a lane that its own mask leaves out");
    thread.state = State::warp, thread.next = step, thread.mask = mask;
    for (u32 i = present; i-- > 0;) {
        if (!(mask >> i & 1))
            continue;
        const Thread& other = lanes[i];
        if (other.state == State::done)
            fault("Divergence", step, thread, "lane " + std::to_string(i) + " has exited");
        if (other.state != State::warp || other.next != step || other.mask != mask)
            return nullptr;
    }
    together(step, lanes, mask);
    for (u32 i = 0; i < present; ++i) {
        if (!(mask >> i & 1))
            continue;
        lanes[i].state = State::ready, lanes[i].next = step + 1;
    }
    return step + 1;
}

// The last operand is the mask.
template <Together together, int operands>
const Step* masked(const Step* step, Thread& thread) {
    return meet(step, thread, read<u32>(thread, step->slot[operands - 1]), together);
}

// No mask: all 32 lanes.
template <Together together>
const Step* whole_warp(const Step* step, Thread& thread) {
    if (thread.index - thread.lane + 32 > thread.block->threads.size())
        fault("Divergence", step, thread, "the warp has fewer than 32 threads");
    return meet(step, thread, ~0u, together);
}

template <class F>
void each_lane(u32 mask, F f) {
    for (u32 i = 0; i < 32; ++i)
        if (mask >> i & 1)
            f(i);
}

} // namespace emulator
