// shfl, vote, redux, elect and bar.warp.
#include "warp.h"

#include "numbers.h"

namespace emulator {
namespace {

enum class Shuffle { up, down, bfly, idx };

struct Source {
    int lane;
    bool inside;
};

// The PTX manual's rule: `clamp` holds the last lane of the segment and, from bit 8 on, the mask that defines the
// segment.
template <Shuffle mode>
Source source(int lane, u32 b, u32 clamp) {
    const int by = b & 31, segments = clamp >> 8 & 31, bound = clamp & 31;
    const int last = (lane & segments) | (bound & ~segments), first = lane & segments;
    if constexpr (mode == Shuffle::up)
        return {lane - by, lane - by >= last};
    if constexpr (mode == Shuffle::down)
        return {lane + by, lane + by <= last};
    if constexpr (mode == Shuffle::bfly)
        return {lane ^ by, (lane ^ by) <= last};
    const int from = first | (by & ~segments);
    return {from, from <= last};
}

// Operands: d, a, b, clamp, mask; or d, p, a, b, clamp, mask.
template <Shuffle mode, int has_predicate>
void shuffle(const Step* step, Thread* lanes, u32 mask) {
    const u32* o = step->slot + 1 + has_predicate;
    u32 values[32];
    each_lane(mask, [&](u32 i) { values[i] = read<u32>(lanes[i], o[0]); });
    each_lane(mask, [&](u32 i) {
        Source from = source<mode>(int(i), read<u32>(lanes[i], o[1]), read<u32>(lanes[i], o[2]));
        if (!from.inside)
            from.lane = int(i);
        if (!(mask >> from.lane & 1))
            fault("Divergence", step, lanes[i],
                  "a value of lane " + std::to_string(from.lane) + ", which is not in the mask");
        write(lanes[i], step->slot[0], values[from.lane]);
        if (has_predicate)
            write(lanes[i], step->slot[1], from.inside);
    });
}

template <Shuffle mode>
void shuffles(Table& table, const char* name) {
    const std::string opcode = std::string("shfl.sync.") + name + ".b32";
    table.add(opcode, 5, masked<shuffle<mode, 0>, 5>);
    table.add(opcode, 6, masked<shuffle<mode, 1>, 6>);
}

// Operands: d, a, mask.
template <class T, auto f>
void reduce(const Step* step, Thread* lanes, u32 mask) {
    T result = read<T>(lanes[std::countr_zero(mask)], step->slot[1]);
    each_lane(mask & (mask - 1), [&](u32 i) { result = f(result, read<T>(lanes[i], step->slot[1])); });
    each_lane(mask, [&](u32 i) { write<T>(lanes[i], step->slot[0], result); });
}

template <class T>
void integer_reductions(Table& table, const std::string& type) {
    table.add("redux.sync.add." + type, 3, masked<reduce<T, [](T a, T b) { return T(u32(a) + u32(b)); }>, 3>);
    table.add("redux.sync.min." + type, 3, masked<reduce<T, [](T a, T b) { return std::min(a, b); }>, 3>);
    table.add("redux.sync.max." + type, 3, masked<reduce<T, [](T a, T b) { return std::max(a, b); }>, 3>);
}

void reductions(Table& table) {
    integer_reductions<u32>(table, "u32"), integer_reductions<s32>(table, "s32");
    table.add("redux.sync.and.b32", 3, masked<reduce<u32, [](u32 a, u32 b) { return a & b; }>, 3>);
    table.add("redux.sync.or.b32", 3, masked<reduce<u32, [](u32 a, u32 b) { return a | b; }>, 3>);
    table.add("redux.sync.xor.b32", 3, masked<reduce<u32, [](u32 a, u32 b) { return a ^ b; }>, 3>);
    using F = float; // sm_100 and later
    table.add("redux.sync.min.f32", 3, masked<reduce<F, [](F a, F b) { return smaller<false>(a, b); }>, 3>);
    table.add("redux.sync.max.f32", 3, masked<reduce<F, [](F a, F b) { return larger<false>(a, b); }>, 3>);
    table.add("redux.sync.min.NaN.f32", 3, masked<reduce<F, [](F a, F b) { return smaller<true>(a, b); }>, 3>);
    table.add("redux.sync.max.NaN.f32", 3, masked<reduce<F, [](F a, F b) { return larger<true>(a, b); }>, 3>);
}

template <class T, auto f>
void vote(const Step* step, Thread* lanes, u32 mask) {
    u32 votes = 0;
    each_lane(mask, [&](u32 i) { votes |= u32(read<bool>(lanes[i], step->slot[1])) << i; });
    each_lane(mask, [&](u32 i) { write<T>(lanes[i], step->slot[0], f(votes, mask)); });
}

void votes(Table& table) {
    table.add("vote.sync.any.pred", 3, masked<vote<bool, [](u32 v, u32) { return v != 0; }>, 3>);
    table.add("vote.sync.all.pred", 3, masked<vote<bool, [](u32 v, u32 mask) { return v == mask; }>, 3>);
    table.add("vote.sync.uni.pred", 3, masked<vote<bool, [](u32 v, u32 mask) { return v == 0 || v == mask; }>, 3>);
    table.add("vote.sync.ballot.b32", 3, masked<vote<u32, [](u32 v, u32) { return v; }>, 3>);
}

// Operands: d, p, mask.
void elect(const Step* step, Thread* lanes, u32 mask) {
    const u32 leader = u32(std::countr_zero(mask));
    each_lane(mask, [&](u32 i) {
        write(lanes[i], step->slot[0], leader);
        write(lanes[i], step->slot[1], i == leader);
    });
}

void synchronize(const Step*, Thread* lanes, u32) { ++lanes->block->warp_epochs[lanes->index / 32]; }

} // namespace

void warp_opcodes(Table& table) {
    shuffles<Shuffle::up>(table, "up"), shuffles<Shuffle::down>(table, "down");
    shuffles<Shuffle::bfly>(table, "bfly"), shuffles<Shuffle::idx>(table, "idx");
    reductions(table), votes(table);
    table.add("elect.sync", 3, masked<elect, 3>);
    table.add("bar.warp.sync", 1, masked<synchronize, 1>);
}

} // namespace emulator
