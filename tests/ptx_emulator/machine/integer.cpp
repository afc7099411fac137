// Integer arithmetic, with the carry chains of wide multiplication.
#include <algorithm>
#include <limits>

#include "machine.h"

namespace emulator {
namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;
template <class T>
struct TwiceAs;
template <>
struct TwiceAs<s16> {
    using type = s32;
};
template <>
struct TwiceAs<u16> {
    using type = u32;
};
template <>
struct TwiceAs<s32> {
    using type = s64;
};
template <>
struct TwiceAs<u32> {
    using type = u64;
};
template <>
struct TwiceAs<s64> {
    using type = s128;
};
template <>
struct TwiceAs<u64> {
    using type = u128;
};
template <class T>
using Twice = typename TwiceAs<T>::type;

template <class T>
T sum(T a, T b) {
    return T(Unsigned<T>(a) + Unsigned<T>(b));
}
template <class T>
T low(T a, T b) {
    return T(Twice<T>(a) * Twice<T>(b));
}
template <class T>
T high(T a, T b) {
    return T((Twice<T>(a) * Twice<T>(b)) >> (8 * sizeof(T)));
}

// The hardware gives all ones for a division by zero, which masked-off lanes do.
template <class T>
T quotient(T a, T b) {
    if (b == 0)
        return T(-1);
    if (std::is_signed_v<T> && b == T(-1))
        return T(0 - Unsigned<T>(a));
    return T(a / b);
}
template <class T>
T remainder(T a, T b) {
    if (b == 0)
        return a;
    return std::is_signed_v<T> && b == T(-1) ? T(0) : T(a % b);
}

template <class T>
void arithmetic(Table& table, const std::string& type) {
    table.pure<[](T a, T b) { return sum(a, b); }>("add." + type);
    table.pure<[](T a, T b) { return T(Unsigned<T>(a) - Unsigned<T>(b)); }>("sub." + type);
    table.pure<[](T a, T b) { return low(a, b); }>("mul.lo." + type);
    table.pure<[](T a, T b) { return high(a, b); }>("mul.hi." + type);
    table.pure<[](T a, T b, T c) { return sum(low(a, b), c); }>("mad.lo." + type);
    table.pure<[](T a, T b, T c) { return sum(high(a, b), c); }>("mad.hi." + type);
    table.pure<[](T a, T b) { return quotient(a, b); }>("div." + type);
    table.pure<[](T a, T b) { return remainder(a, b); }>("rem." + type);
    table.pure<[](T a, T b) { return std::min(a, b); }>("min." + type);
    table.pure<[](T a, T b) { return std::max(a, b); }>("max." + type);
}

template <class T>
void wide(Table& table, const std::string& type) {
    using W = Twice<T>;
    table.pure<[](T a, T b) { return W(W(a) * W(b)); }>("mul.wide." + type);
    table.pure<[](T a, T b, W c) { return sum<W>(W(a) * W(b), c); }>("mad.wide." + type);
}

template <class T>
void signs(Table& table, const std::string& type) {
    table.pure<[](T a) { return T(0 - Unsigned<T>(a)); }>("neg." + type);
    table.pure<[](T a) { return a < 0 ? T(0 - Unsigned<T>(a)) : a; }>("abs." + type);
}

s32 saturate(s64 value) {
    return s32(std::clamp<s64>(value, std::numeric_limits<s32>::min(), std::numeric_limits<s32>::max()));
}

enum class Product { none, low, high };
enum class Add { plus, minus };

// d = a * b (or a) +- the last operand, with carry in and carry out as the opcode says.
template <class T, Product product, Add sign, bool takes, bool leaves>
const Step* chained(const Step* step, Thread& t) {
    T a = read<T>(t, step->slot[1]), b = read<T>(t, step->slot[2]);
    if constexpr (product != Product::none) {
        a = product == Product::low ? low(a, b) : high(a, b);
        b = read<T>(t, step->slot[3]);
    }
    const u128 left = Unsigned<T>(a), right = Unsigned<T>(b), carry = takes ? t.carry : 0;
    const u128 result = sign == Add::plus ? left + right + carry : left - right - carry;
    write<T>(t, step->slot[0], T(result));
    if (leaves)
        t.carry = u32(result >> (8 * sizeof(T))) & 1;
    return step + 1;
}

template <class T>
void carries(Table& table, const std::string& type) {
    table.add("add.cc." + type, 3, chained<T, Product::none, Add::plus, false, true>);
    table.add("addc." + type, 3, chained<T, Product::none, Add::plus, true, false>);
    table.add("addc.cc." + type, 3, chained<T, Product::none, Add::plus, true, true>);
    table.add("sub.cc." + type, 3, chained<T, Product::none, Add::minus, false, true>);
    table.add("subc." + type, 3, chained<T, Product::none, Add::minus, true, false>);
    table.add("subc.cc." + type, 3, chained<T, Product::none, Add::minus, true, true>);
    table.add("mad.lo.cc." + type, 4, chained<T, Product::low, Add::plus, false, true>);
    table.add("mad.hi.cc." + type, 4, chained<T, Product::high, Add::plus, false, true>);
    table.add("madc.lo." + type, 4, chained<T, Product::low, Add::plus, true, false>);
    table.add("madc.hi." + type, 4, chained<T, Product::high, Add::plus, true, false>);
    table.add("madc.lo.cc." + type, 4, chained<T, Product::low, Add::plus, true, true>);
    table.add("madc.hi.cc." + type, 4, chained<T, Product::high, Add::plus, true, true>);
}

} // namespace

void integer_opcodes(Table& table) {
    arithmetic<s16>(table, "s16"), arithmetic<u16>(table, "u16");
    arithmetic<s32>(table, "s32"), arithmetic<u32>(table, "u32");
    arithmetic<s64>(table, "s64"), arithmetic<u64>(table, "u64");
    wide<s16>(table, "s16"), wide<u16>(table, "u16"), wide<s32>(table, "s32"), wide<u32>(table, "u32");
    signs<s16>(table, "s16"), signs<s32>(table, "s32"), signs<s64>(table, "s64");
    carries<u32>(table, "u32"), carries<s32>(table, "s32"), carries<u64>(table, "u64"), carries<s64>(table, "s64");
    table.pure<[](s32 a, s32 b) { return saturate(s64(a) + b); }>("add.sat.s32");
    table.pure<[](s32 a, s32 b) { return saturate(s64(a) - b); }>("sub.sat.s32");
}

} // namespace emulator
