// Logic, shifts, bit fields, selection and moves.
#include "machine.h"

namespace emulator {
namespace {

template <class T>
constexpr u32 width = 8 * sizeof(T);

template <class T>
void logic(Table& table, const std::string& type) {
    table.pure<[](T a, T b) { return T(a & b); }>("and." + type);
    table.pure<[](T a, T b) { return T(a | b); }>("or." + type);
    table.pure<[](T a, T b) { return T(a ^ b); }>("xor." + type);
    table.pure<[](T a) { return T(a ^ T(~u64(0))); }>("not." + type);
}

// A count of at least the width shifts everything out: PTX clamps the count, and C++ leaves the result undefined.
template <class T>
void shift(Table& table, const std::string& bits) {
    using S = std::make_signed_t<T>;
    table.pure<[](T a, u32 n) { return n < width<T> ? T(a << n) : T(0); }>("shl.b" + bits);
    table.pure<[](T a, u32 n) { return n < width<T> ? T(a >> n) : T(0); }>("shr.b" + bits);
    table.pure<[](T a, u32 n) { return n < width<T> ? T(a >> n) : T(0); }>("shr.u" + bits);
    table.pure<[](S a, u32 n) { return S(a >> (n < width<T> ? n : width<T> - 1)); }>("shr.s" + bits);
}

u32 funnel(u32 low, u32 high, u32 n, bool left) {
    const u64 both = u64(high) << 32 | low;
    return left ? u32((both << n) >> 32) : u32(both >> n);
}

// Computed in 128 bits: positions beyond the operand hold its sign (or zeros), and no count is too large.
template <class T>
T field(T a, u32 position, u32 length) {
    using Wide = std::conditional_t<std::is_signed_v<T>, s128, u128>;
    position &= 255, length &= 255;
    if (length == 0)
        return 0;
    const Wide from = Wide(a) >> std::min(position, 127u);
    const u32 above = 128 - std::min(length, 128u);
    return T(Wide(u128(from) << above) >> above);
}

template <class T>
T inserted(T a, T b, u32 position, u32 length) {
    position &= 255, length &= 255;
    if (position >= width<T>)
        return b;
    const T mask = T(((u128(1) << std::min(length, 64u)) - 1) << position);
    return T((T(a << position) & mask) | (b & ~mask));
}

u32 permuted(u32 a, u32 b, u32 selector) {
    const u64 both = u64(b) << 32 | a;
    u32 result = 0;
    for (int i = 0; i < 4; ++i) {
        const u32 choice = selector >> (4 * i) & 15, byte = u32(both >> (8 * (choice & 7))) & 255;
        const u32 sign = byte & 128 ? 255 : 0; // the choice's upper bit asks for the sign of the byte instead
        result |= (choice & 8 ? sign : byte) << (8 * i);
    }
    return result;
}

u32 looked_up(u32 a, u32 b, u32 c, u32 truth) {
    u32 result = 0;
    for (int i = 0; i < 8; ++i)
        if (truth >> i & 1)
            result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return result;
}

template <class T>
T reversed(T a) {
    T result = 0;
    for (u32 i = 0; i < width<T>; ++i)
        result |= (a >> i & 1) << (width<T> - 1 - i);
    return result;
}

template <class T>
void fields(Table& table, const std::string& bits) {
    using S = std::make_signed_t<T>;
    table.pure<[](T a, u32 p, u32 n) { return field<T>(a, p, n); }>("bfe.u" + bits);
    table.pure<[](S a, u32 p, u32 n) { return field<S>(a, p, n); }>("bfe.s" + bits);
    table.pure<[](T a, T b, u32 p, u32 n) { return inserted(a, b, p, n); }>("bfi.b" + bits);
    table.pure<[](T a) { return u32(std::popcount(a)); }>("popc.b" + bits);
    table.pure<[](T a) { return u32(std::countl_zero(a)); }>("clz.b" + bits);
    table.pure<[](T a) { return reversed(a); }>("brev.b" + bits);
}

template <class T>
void select(Table& table, const std::string& type) {
    table.pure<[](T a, T b, bool p) { return p ? a : b; }>("selp." + type);
    table.pure<[](T a) { return a; }>("mov." + type);
}

// Converts {low, ..., high} to one value, and back.
template <class Whole, class Part>
const Step* pack(const Step* step, Thread& t) {
    u64 whole = 0;
    constexpr int parts = sizeof(Whole) / sizeof(Part);
    for (int i = 0; i < parts; ++i)
        whole |= u64(read<Part>(t, step->slot[1 + i])) << (i * width<Part>);
    write<Whole>(t, step->slot[0], Whole(whole));
    return step + 1;
}
template <class Whole, class Part>
const Step* unpack(const Step* step, Thread& t) {
    constexpr int parts = sizeof(Whole) / sizeof(Part);
    const Whole whole = read<Whole>(t, step->slot[parts]);
    for (int i = 0; i < parts; ++i)
        write<Part>(t, step->slot[i], Part(whole >> (i * width<Part>)));
    return step + 1;
}
template <class Whole, class Part>
void packing(Table& table, const std::string& type) {
    constexpr int operands = 1 + sizeof(Whole) / sizeof(Part);
    table.add("mov.pack." + type, operands, pack<Whole, Part>);
    table.add("mov.unpack." + type, operands, unpack<Whole, Part>);
}

} // namespace

void bit_opcodes(Table& table) {
    logic<bool>(table, "pred"), logic<u16>(table, "b16"), logic<u32>(table, "b32"), logic<u64>(table, "b64");
    shift<u16>(table, "16"), shift<u32>(table, "32"), shift<u64>(table, "64");
    fields<u32>(table, "32"), fields<u64>(table, "64");
    table.pure<[](u32 a, u32 b, u32 n) { return funnel(a, b, n & 31, true); }>("shf.l.wrap.b32");
    table.pure<[](u32 a, u32 b, u32 n) { return funnel(a, b, n & 31, false); }>("shf.r.wrap.b32");
    table.pure<[](u32 a, u32 b, u32 n) { return funnel(a, b, std::min(n, 32u), true); }>("shf.l.clamp.b32");
    table.pure<[](u32 a, u32 b, u32 n) { return funnel(a, b, std::min(n, 32u), false); }>("shf.r.clamp.b32");
    table.pure<[](u32 a, u32 b, u32 c) { return permuted(a, b, c); }>("prmt.b32");
    table.pure<[](u32 a, u32 b, u32 c, u32 truth) { return looked_up(a, b, c, truth); }>("lop3.b32");
    for (const char* kind : {"b", "u", "s"}) {
        select<u16>(table, kind + std::string("16")), select<u32>(table, kind + std::string("32"));
        select<u64>(table, kind + std::string("64"));
    }
    select<u32>(table, "f32"), select<u64>(table, "f64");
    table.pure<[](bool a) { return a; }>("mov.pred");
    packing<u32, u16>(table, "b32");
    packing<u64, u32>(table, "b64"), packing<u64, u16>(table, "b64");
}

} // namespace emulator
