// Runs a launch: blocks one after another. The threads of a block take turns; each runs until it has to wait.
#include <numeric>
#include <random>
#include <stdexcept>

#include "machine.h"

namespace emulator {
namespace {

constexpr u64 jumps_per_block = u64(1) << 27;

const std::vector<std::pair<std::pair<std::string, int>, Handler>>& opcodes() {
    static const auto all = [] {
        Table table;
        for (auto add : {integer_opcodes, bit_opcodes, float_opcodes, half_opcodes, compare_opcodes, convert_opcodes,
                         control_opcodes, memory_opcodes, atomic_opcodes, warp_opcodes, tensor_opcodes})
            add(table);
        return std::vector<std::pair<std::pair<std::string, int>, Handler>>(table.handlers.begin(),
                                                                            table.handlers.end());
    }();
    return all;
}

// 0 is forward, 1 is backward, anything else is the seed of a shuffle.
class Order {
public:
    Order(u64 order, u64 count) : order_(order), random_(order), items_(count) {
        std::iota(items_.begin(), items_.end(), 0);
        if (order_ == 1)
            std::reverse(items_.begin(), items_.end());
    }
    const std::vector<u64>& next() {
        if (order_ > 1)
            std::shuffle(items_.begin(), items_.end(), random_);
        return items_;
    }

private:
    u64 order_;
    std::mt19937_64 random_;
    std::vector<u64> items_;
};

// Register files. A finished thread's file is reused by the next thread, so a kernel without barriers stays in the
// cache.
class Files {
public:
    explicit Files(const std::vector<u64>& initial) : initial_(initial) {}
    u64* take() {
        if (free_.empty()) {
            files_.emplace_back(initial_.size());
            free_.push_back(files_.back().data());
        }
        u64* file = free_.back();
        free_.pop_back();
        std::copy(initial_.begin(), initial_.end(), file);
        return file;
    }
    void give(u64* file) { free_.push_back(file); }

private:
    const std::vector<u64>& initial_;
    std::vector<std::vector<u64>> files_;
    std::vector<u64*> free_;
};

void start(Thread& t, Files& files) {
    const Launch& launch = *t.block->launch;
    t.slot = files.take();
    const u32* size = launch.block;
    const u32 position[3] = {t.index % size[0], t.index / size[0] % size[1], t.index / size[0] / size[1]};
    for (u32 i = 0; i < 3; ++i) {
        t.slot[tid + i] = position[i], t.slot[ntid + i] = size[i];
        t.slot[ctaid + i] = t.block->index[i], t.slot[nctaid + i] = launch.grid[i];
    }
    t.slot[laneid] = t.lane, t.slot[warpid] = t.index / 32;
    t.local.assign(launch.local_bytes, 0xFF);
    t.copies.assign(1, {});
}

void run(Thread& t, Files& files) {
    if (!t.slot)
        start(t, files);
    for (const Step* step = t.next; step;)
        step = step->run(step, t);
    if (t.state == State::done)
        files.give(t.slot);
}

void open_barrier(Block& block) {
    const Thread& first = block.threads[0];
    for (Thread& t : block.threads)
        if (t.next != first.next)
            fault("Divergence", t.next, t, "another barrier than the one at line " + std::to_string(first.next->line));
    for (Thread& t : block.threads)
        t.state = State::ready, ++t.next;
    block.at_barrier = 0;
    ++block.epoch;
}

[[noreturn]] void deadlock(Block& block) {
    const Thread* stuck = nullptr;
    for (const Thread& t : block.threads)
        if (t.state != State::done && (!stuck || (t.state == State::warp && stuck->state != State::warp)))
            stuck = &t;
    for (const Thread& t : block.threads) {
        const bool concerned = stuck->state == State::barrier || (t.index / 32 == stuck->index / 32);
        if (!concerned || (t.state != State::done && t.next == stuck->next && t.mask == stuck->mask))
            continue;
        const std::string where =
            t.state == State::done ? "has exited" : "waits at line " + std::to_string(t.next->line);
        fault("Divergence", stuck->next, *stuck,
              "not all threads come here: thread " + std::to_string(t.index) + " " + where);
    }
    fault("Divergence", stuck->next, *stuck, "not all threads come here");
}

void run_block(Block& block, Files& files, u64 order) {
    const Launch& launch = *block.launch;
    const u32 count = launch.block[0] * launch.block[1] * launch.block[2];
    block.threads.resize(count);
    for (u32 i = 0; i < count; ++i) {
        Thread& t = block.threads[i];
        t.slot = nullptr, t.block = &block, t.next = launch.code.data(), t.index = i, t.lane = i % 32;
        t.mask = 0, t.carry = 0, t.state = State::ready;
    }
    block.shared.assign(launch.shared_bytes, 0xFF);
    block.touches.resize(launch.finds_races ? launch.shared_bytes : 0);
    block.warp_epochs.resize((count + 31) / 32);
    ++block.epoch;
    block.at_barrier = block.done = 0, block.jumps = jumps_per_block;
    for (Order turns(order, count); block.done < count;) {
        bool progress = false;
        for (u64 i : turns.next()) {
            if (block.threads[i].state != State::ready)
                continue;
            run(block.threads[i], files);
            progress = true;
        }
        if (block.at_barrier == count)
            open_barrier(block);
        else if (!progress)
            deadlock(block);
    }
}

void run_launch(const Launch& launch) {
    Files files(launch.registers);
    Block block{};
    block.launch = &launch;
    const u64 across = launch.grid[0], plane = across * launch.grid[1];
    Order blocks(launch.order, plane * launch.grid[2]);
    for (u64 i : blocks.next()) {
        block.index[0] = u32(i % across), block.index[1] = u32(i % plane / across), block.index[2] = u32(i / plane);
        run_block(block, files, launch.order > 1 ? launch.order + i : launch.order);
    }
}

} // namespace

void Table::add(const std::string& opcode, int operands, Handler handler) {
    if (!handlers.emplace(std::pair{opcode, operands}, handler).second)
        throw std::logic_error(opcode + " twice");
}

std::string dotted(std::initializer_list<std::string_view> parts) {
    std::string result;
    for (std::string_view part : parts)
        if (!part.empty())
            result.append(result.empty() ? "" : ".").append(part);
    return result;
}

void fault(const char* kind, const Step* step, const Thread& thread, const std::string& what) {
    const u32* b = thread.block->index;
    const std::string block = std::to_string(b[0]) + ", " + std::to_string(b[1]) + ", " + std::to_string(b[2]);
    throw Fault{kind, std::to_string(step->line) + "\n" + what + "; thread " + std::to_string(thread.index) +
                          " of block (" + block + ")"};
}

} // namespace emulator

// The interface to Python; native.py mirrors it.
extern "C" {

struct RawStep {
    std::uint32_t opcode, line, slot[19];
};
struct RawRegion {
    std::uint64_t host, begin, bytes;
};
struct RawLaunch {
    std::uint32_t grid[3], block[3];
    std::uint64_t steps, registers, regions, parameter_bytes, shared_bytes, local_bytes, order, finds_races;
    const RawStep* step;
    const std::uint64_t* initial;
    const RawRegion* region;
    const std::uint8_t* parameter;
};

// One line per opcode: its text and the number of its operands.
const char* emulator_opcodes() {
    static std::string text;
    if (text.empty())
        for (const auto& [key, handler] : emulator::opcodes())
            text += key.first + " " + std::to_string(key.second) + "\n";
    return text.c_str();
}

// Returns nullptr, or "kind\nline\nwhat".
const char* emulator_launch(const RawLaunch* raw) {
    static thread_local std::string error;
    emulator::Launch launch{};
    std::copy_n(raw->grid, 3, launch.grid), std::copy_n(raw->block, 3, launch.block);
    launch.code.resize(raw->steps);
    for (std::uint64_t i = 0; i < raw->steps; ++i) {
        const RawStep& step = raw->step[i];
        launch.code[i] = {emulator::opcodes()[step.opcode].second, step.line, {}};
        std::copy_n(step.slot, 19, launch.code[i].slot);
    }
    launch.registers.assign(raw->initial, raw->initial + raw->registers);
    for (std::uint64_t i = 0; i < raw->regions; ++i) {
        const RawRegion& r = raw->region[i];
        launch.regions.push_back({reinterpret_cast<std::uint8_t*>(r.host), r.begin, r.begin + r.bytes});
    }
    launch.parameters.assign(raw->parameter, raw->parameter + raw->parameter_bytes);
    launch.shared_bytes = raw->shared_bytes, launch.local_bytes = raw->local_bytes, launch.order = raw->order;
    launch.finds_races = raw->finds_races;
    try {
        emulator::run_launch(launch);
    } catch (const emulator::Fault& f) {
        error = std::string(f.kind) + "\n" + f.what;
        return error.c_str();
    }
    return nullptr;
}
}
