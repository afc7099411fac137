// ld, st, cp.async and the conversion of addresses. Opcodes are in the canonical form that opcodes.py gives them.
#include "memory.h"

namespace emulator {

std::string describe(Thread& thread, u64 address, u64 bytes) {
    const auto& regions = thread.block->launch->regions;
    const u64 index = (address >> tag_shift) - 1;
    std::string where = "of no tensor (address " + std::to_string(address) + ")";
    if (index < regions.size()) {
        const Region& region = regions[index];
        const s64 offset = s64(address & offset_mask) - s64(region.begin);
        where = "at offset " + std::to_string(offset) + " of the " + std::to_string(region.end - region.begin) +
                " bytes of tensor " + std::to_string(index);
    }
    return std::to_string(bytes) + " bytes " + where;
}

namespace {

// Operands: the values, then the address and its displacement.
template <class T, int lanes, Space space>
const Step* load_step(const Step* step, Thread& t) {
    const u64 address = t.slot[step->slot[lanes]] + t.slot[step->slot[lanes + 1]];
    const u8* from = locate<space>(step, t, address, lanes * sizeof(T));
    touch(step, t, from, lanes * sizeof(T), Access::read);
    for (int i = 0; i < lanes; ++i)
        write<T>(t, step->slot[i], load<T>(from + i * sizeof(T)));
    return step + 1;
}

template <class T, int lanes, Space space>
const Step* store_step(const Step* step, Thread& t) {
    const u64 address = t.slot[step->slot[0]] + t.slot[step->slot[1]];
    u8* to = locate<space>(step, t, address, lanes * sizeof(T));
    T values[lanes];
    for (int i = 0; i < lanes; ++i)
        values[i] = read<T>(t, step->slot[2 + i]);
    touch(step, t, to, sizeof values, Access::write, values);
    std::memcpy(to, values, sizeof values);
    return step + 1;
}

template <class T, int lanes, Space space>
void access(Table& table, const std::string& where, const std::string& type) {
    const std::string vector = lanes == 1 ? "" : "v" + std::to_string(lanes);
    table.add(dotted({"ld", where, vector, type}), lanes + 2, load_step<T, lanes, space>);
    if constexpr (space != Space::parameter)
        table.add(dotted({"st", where, vector, type}), lanes + 2, store_step<T, lanes, space>);
}

template <class T, Space space>
void vectors(Table& table, const std::string& where, const std::string& type) {
    access<T, 1, space>(table, where, type);
    access<T, 2, space>(table, where, type);
    if constexpr (sizeof(T) <= 4 || space == Space::global)
        access<T, 4, space>(table, where, type);
    if constexpr (sizeof(T) == 4 && space == Space::global)
        access<T, 8, space>(table, where, type);
}

template <Space space>
void space_opcodes(Table& table, const std::string& where) {
    vectors<u8, space>(table, where, "b8"), vectors<u8, space>(table, where, "u8");
    vectors<s8, space>(table, where, "s8");
    vectors<u16, space>(table, where, "b16"), vectors<u16, space>(table, where, "u16");
    vectors<s16, space>(table, where, "s16");
    vectors<u32, space>(table, where, "b32"), vectors<u32, space>(table, where, "u32");
    vectors<s32, space>(table, where, "s32"), vectors<u32, space>(table, where, "f32");
    vectors<u64, space>(table, where, "b64"), vectors<u64, space>(table, where, "u64");
    vectors<s64, space>(table, where, "s64"), vectors<u64, space>(table, where, "f64");
}

void window(Table& table, const char* space, auto enter, auto leave) {
    table.pure<decltype(enter){}>(dotted({"cvta", space, "u64"}));
    table.pure<decltype(leave){}>(dotted({"cvta.to", space, "u64"}));
}

void address_opcodes(Table& table) {
    constexpr auto same = [](u64 a) { return a; };
    constexpr auto without = [](u64 a) { return a & offset_mask; };
    window(table, "global", same, same), window(table, "const", same, same);
    window(table, "shared", [](u64 a) { return tag(shared_window) | a; }, without);
    window(table, "local", [](u64 a) { return tag(local_window) | a; }, without);
}

// A copy completes when it is waited for, not before. A thread that does not wait sees the old contents.
void land(Thread& t, const std::vector<Copy>& group) {
    for (const Copy& copy : group) {
        u8* to = locate_shared(copy.step, t, copy.to, copy.bytes);
        touch(copy.step, t, to, copy.bytes, Access::write);
        std::memset(to, 0, copy.bytes);
        if (copy.read == 0)
            continue;
        if (copy.from % copy.bytes)
            fault("MisalignedAccess", copy.step, t, describe(t, copy.from, copy.bytes));
        for (u32 i = 0; i < copy.read; ++i)
            to[i] = *locate_global(copy.step, t, copy.from + i, 1);
    }
}

// Operands: shared address, global address, size and, for the masked form, how much of it to read.
template <bool masked>
const Step* copy_step(const Step* step, Thread& t) {
    const u32 *o = step->slot, bytes = read<u32>(t, o[4]), wanted = masked ? read<u32>(t, o[5]) : bytes;
    if (bytes != 4 && bytes != 8 && bytes != 16)
        fault("UnsupportedPtx", step, t, "cp.async of this size");
    const u64 to = t.slot[o[0]] + t.slot[o[1]];
    touch(step, t, locate_shared(step, t, to, bytes), bytes, Access::write); // it may land as early as this
    t.copies.back().push_back({to, t.slot[o[2]] + t.slot[o[3]], bytes, wanted, step});
    return step + 1;
}

const Step* commit_step(const Step* step, Thread& t) {
    t.copies.emplace_back();
    return step + 1;
}

const Step* wait_group_step(const Step* step, Thread& t) {
    const std::size_t keep = read<u32>(t, step->slot[0]), committed = t.copies.size() - 1;
    const std::size_t landing = committed > keep ? committed - keep : 0;
    for (std::size_t i = 0; i < landing; ++i)
        land(t, t.copies[i]);
    t.copies.erase(t.copies.begin(), t.copies.begin() + landing);
    return step + 1;
}

const Step* wait_all_step(const Step* step, Thread& t) {
    for (const auto& group : t.copies)
        land(t, group);
    t.copies.assign(1, {});
    return step + 1;
}

} // namespace

void memory_opcodes(Table& table) {
    space_opcodes<Space::global>(table, "global"), space_opcodes<Space::shared>(table, "shared");
    space_opcodes<Space::local>(table, "local"), space_opcodes<Space::parameter>(table, "param");
    space_opcodes<Space::generic>(table, "");
    address_opcodes(table);
    table.add("cp.async", 5, copy_step<false>), table.add("cp.async", 6, copy_step<true>);
    table.add("cp.async.commit_group", 0, commit_step), table.add("cp.async.wait_all", 0, wait_all_step);
    table.add("cp.async.wait_group", 1, wait_group_step);
}

} // namespace emulator
