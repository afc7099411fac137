// atom and red. Threads run one at a time, so a plain read, change and write is atomic.
#include "memory.h"
#include "numbers.h"

namespace emulator {
namespace {

constexpr auto add = [](auto a, auto b) { return decltype(a)(a + b); };
constexpr auto min = [](auto a, auto b) { return std::min(a, b); };
constexpr auto max = [](auto a, auto b) { return std::max(a, b); };
constexpr auto bit_and = [](auto a, auto b) { return a & b; };
constexpr auto bit_or = [](auto a, auto b) { return a | b; };
constexpr auto bit_xor = [](auto a, auto b) { return a ^ b; };
constexpr auto exchange = [](auto, auto b) { return b; };
// Half atomics of either format; a pair is two sums.
constexpr auto add_half = [](auto a, auto b) { return decltype(a)::of(float(a) + float(b)); };
constexpr auto add_halves = [](auto a, auto b) {
    return decltype(a){add_half(a.low, b.low), add_half(a.high, b.high)};
};
constexpr auto add_float = [](auto a, auto b) { return canonical(a + b); };

// Operands: the old values (atom only), the address and its displacement, the values.
template <class T, auto f, Space space, int lanes, bool returns>
const Step* update(const Step* step, Thread& t) {
    const u32* operand = step->slot + (returns ? lanes : 0);
    u8* at = locate<space>(step, t, t.slot[operand[0]] + t.slot[operand[1]], lanes * sizeof(T));
    touch(step, t, at, lanes * sizeof(T), Access::update);
    T values[lanes];
    for (int i = 0; i < lanes; ++i)
        values[i] = read<T>(t, operand[2 + i]);
    for (int i = 0; i < lanes; ++i, at += sizeof(T)) {
        const T old = load<T>(at);
        store<T>(at, f(old, values[i]));
        if (returns)
            write<T>(t, step->slot[i], old);
    }
    return step + 1;
}

template <class T, Space space>
const Step* compare_and_swap(const Step* step, Thread& t) {
    const u32* o = step->slot;
    u8* at = locate<space>(step, t, t.slot[o[1]] + t.slot[o[2]], sizeof(T));
    touch(step, t, at, sizeof(T), Access::update);
    const T old = load<T>(at), expected = read<T>(t, o[3]), wanted = read<T>(t, o[4]);
    if (old == expected)
        store<T>(at, wanted);
    write<T>(t, o[0], old);
    return step + 1;
}

template <Space space>
struct In {
    Table& table;
    std::string where;

    template <class T, auto f, int lanes = 1>
    void add_both(const std::string& tail) {
        table.add("atom." + where + tail, 2 * lanes + 2, update<T, f, space, lanes, true>);
        table.add("red." + where + tail, lanes + 2, update<T, f, space, lanes, false>);
    }
    template <class T>
    void integers(const std::string& type) {
        if constexpr (!std::is_same_v<T, s64>)
            add_both<T, add>("add." + type);
        add_both<T, min>("min." + type), add_both<T, max>("max." + type);
    }
    template <class T>
    void bits(const std::string& type) {
        add_both<T, bit_and>("and." + type), add_both<T, bit_or>("or." + type), add_both<T, bit_xor>("xor." + type);
        table.add("atom." + where + "exch." + type, 4, update<T, exchange, space, 1, true>);
    }
    template <class T>
    void swaps(const std::string& type) {
        table.add("atom." + where + "cas." + type, 5, compare_and_swap<T, space>);
    }
    // .v2 and .v4 of floats exist in global memory from sm_90 on.
    void vectors() {
        add_both<float, add_float, 2>("add.v2.f32"), add_both<float, add_float, 4>("add.v4.f32");
        add_both<Half, add_half, 2>("add.v2.f16"), add_both<Half, add_half, 4>("add.v4.f16");
        add_both<Half, add_half, 8>("add.v8.f16"), add_both<BFloat, add_half, 8>("add.v8.bf16");
        add_both<BFloat, add_half, 2>("add.v2.bf16"), add_both<BFloat, add_half, 4>("add.v4.bf16");
        add_both<Pair<Half>, add_halves, 2>("add.v2.f16x2"), add_both<Pair<Half>, add_halves, 4>("add.v4.f16x2");
        add_both<Pair<BFloat>, add_halves, 2>("add.v2.bf16x2"), add_both<Pair<BFloat>, add_halves, 4>("add.v4.bf16x2");
    }
    void all() {
        integers<u32>("u32"), integers<s32>("s32"), integers<u64>("u64"), integers<s64>("s64");
        bits<u32>("b32"), bits<u64>("b64");
        swaps<u16>("b16"), swaps<u32>("b32"), swaps<u64>("b64");
        add_both<float, add_float>("add.f32"), add_both<double, add_float>("add.f64");
        add_both<Half, add_half>("add.f16"), add_both<BFloat, add_half>("add.bf16");
        add_both<Pair<Half>, add_halves>("add.f16x2"), add_both<Pair<BFloat>, add_halves>("add.bf16x2");
        if constexpr (space == Space::global)
            vectors();
    }
};

} // namespace

void atomic_opcodes(Table& table) {
    In<Space::global>{table, "global."}.all(), In<Space::shared>{table, "shared."}.all();
    In<Space::generic>{table, ""}.all();
}

} // namespace emulator
