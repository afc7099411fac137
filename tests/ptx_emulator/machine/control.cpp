// Branches, exits, barriers of the block, and operations without effect where threads run one at a time.
#include "machine.h"

namespace emulator {
namespace {

const Step* jump(const Step* step, Thread& t, u32 target) {
    const Step* to = t.block->launch->code.data() + target;
    if (to <= step && t.block->jumps-- == 0)
        fault("Deadlock", step, t, "an endless loop");
    return to;
}

// Targets are positions in the code, not slots. Predicates are translated to `bra.if` and `bra.unless`.
const Step* bra(const Step* step, Thread& t) { return jump(step, t, step->slot[0]); }
template <bool when>
const Step* bra_when(const Step* step, Thread& t) {
    return read<bool>(t, step->slot[0]) == when ? jump(step, t, step->slot[1]) : step + 1;
}

const Step* leave(const Step*, Thread& t) {
    t.state = State::done, t.next = nullptr;
    ++t.block->done;
    return nullptr;
}

const Step* trap(const Step* step, Thread& t) { fault("Trap", step, t, "the kernel trapped"); }

const Step* barrier(const Step* step, Thread& t) {
    t.state = State::barrier, t.next = step;
    ++t.block->at_barrier;
    return nullptr;
}

// Operands: the barrier's number and how many threads meet there.
const Step* counted_barrier(const Step* step, Thread& t) {
    if (read<u32>(t, step->slot[1]) != t.block->threads.size())
        fault("UnsupportedPtx", step, t, "a barrier for part of a block");
    return barrier(step, t);
}

const Step* nothing(const Step* step, Thread&) { return step + 1; }

} // namespace

void control_opcodes(Table& table) {
    table.add("bra", 1, bra), table.add("bra.uni", 1, bra);
    table.add("bra.if", 2, bra_when<true>), table.add("bra.unless", 2, bra_when<false>);
    table.add("ret", 0, leave), table.add("exit", 0, leave), table.add("trap", 0, trap);
    for (const char* opcode : {"bar.sync", "barrier.sync", "barrier.sync.aligned", "barrier.cta.sync",
                               "barrier.cta.sync.aligned", "bar.cta.sync"})
        table.add(opcode, 1, barrier), table.add(opcode, 2, counted_barrier);
    for (const char* scope : {"cta", "gl", "sys"})
        table.add(std::string("membar.") + scope, 0, nothing);
    for (const char* scope : {"cta", "gpu", "sys"})
        for (const char* sem : {"fence.", "fence.sc.", "fence.acq_rel."})
            table.add(std::string(sem) + scope, 0, nothing);
    table.add("fence.proxy.async.shared::cta", 0, nothing), table.add("fence.proxy.async", 0, nothing);
    table.add("griddepcontrol.wait", 0, nothing), table.add("griddepcontrol.launch_dependents", 0, nothing);
    table.add("nanosleep.u32", 1, nothing);
}

} // namespace emulator
