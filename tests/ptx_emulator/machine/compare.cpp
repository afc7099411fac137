// setp: comparison of integers and floats, with its second result and its combination with a predicate.
#include "numbers.h"

namespace emulator {
namespace {

// How an operand is read: unchanged, as a float flushed to zero, as a half converted to float, as two halves.
template <class T>
struct Plain {
    using Operand = T;
    static T value(T x) { return x; }
};
struct Flushed {
    using Operand = float;
    static float value(float x) { return flushed(x); }
};
template <class T>
struct Single {
    using Operand = T;
    static float value(T x) { return x; }
};
template <class T>
struct Packed : Single<T> {};

enum class Combine { none, with_and, with_or, with_xor };

template <class Kind, auto f, Combine combine>
const Step* compare(const Step* step, Thread& t) {
    using T = typename Kind::Operand;
    bool result = f(Kind::value(read<T>(t, step->slot[1])), Kind::value(read<T>(t, step->slot[2])));
    if constexpr (combine != Combine::none) {
        const bool other = read<bool>(t, step->slot[3]);
        if (combine == Combine::with_and)
            result = result && other;
        if (combine == Combine::with_or)
            result = result || other;
        if (combine == Combine::with_xor)
            result = result != other;
    }
    write(t, step->slot[0], result);
    return step + 1;
}

// setp p|q: q is the opposite of p, or the upper half's result.
template <class Kind, auto f>
const Step* compare_both(const Step* step, Thread& t) {
    using T = typename Kind::Operand;
    const bool result = f(Kind::value(read<T>(t, step->slot[2])), Kind::value(read<T>(t, step->slot[3])));
    write(t, step->slot[0], result), write(t, step->slot[1], !result);
    return step + 1;
}
template <class Kind, auto f>
const Step* compare_pair(const Step* step, Thread& t) {
    using P = Pair<typename Kind::Operand>;
    const P a = read<P>(t, step->slot[2]), b = read<P>(t, step->slot[3]);
    write<bool>(t, step->slot[0], f(Kind::value(a.low), Kind::value(b.low)));
    write<bool>(t, step->slot[1], f(Kind::value(a.high), Kind::value(b.high)));
    return step + 1;
}

template <class Kind, auto f>
void comparison(Table& table, const char* name, const std::string& type) {
    if constexpr (std::is_base_of_v<Packed<typename Kind::Operand>, Kind>) {
        table.add(dotted({"setp", name, type}), 4, compare_pair<Kind, f>);
    } else {
        table.add(dotted({"setp", name, type}), 3, compare<Kind, f, Combine::none>);
        table.add(dotted({"setp", name, type}), 4, compare_both<Kind, f>);
        table.add(dotted({"setp", name, "and", type}), 4, compare<Kind, f, Combine::with_and>);
        table.add(dotted({"setp", name, "or", type}), 4, compare<Kind, f, Combine::with_or>);
        table.add(dotted({"setp", name, "xor", type}), 4, compare<Kind, f, Combine::with_xor>);
    }
}

constexpr auto equal = [](auto a, auto b) { return a == b; };
constexpr auto unequal = [](auto a, auto b) { return a != b; };
constexpr auto less = [](auto a, auto b) { return a < b; };
constexpr auto at_most = [](auto a, auto b) { return a <= b; };
constexpr auto greater = [](auto a, auto b) { return a > b; };
constexpr auto at_least = [](auto a, auto b) { return a >= b; };
constexpr auto unordered = [](auto a, auto b) { return a != a || b != b; };

template <class Kind>
void equality(Table& table, const std::string& type) {
    comparison<Kind, equal>(table, "eq", type), comparison<Kind, unequal>(table, "ne", type);
}
template <class Kind>
void order(Table& table, const std::string& type) {
    comparison<Kind, less>(table, "lt", type), comparison<Kind, at_most>(table, "le", type);
    comparison<Kind, greater>(table, "gt", type), comparison<Kind, at_least>(table, "ge", type);
}

template <class T>
void integers(Table& table, const std::string& bits) {
    using S = std::make_signed_t<T>;
    equality<Plain<T>>(table, "b" + bits);
    equality<Plain<T>>(table, "u" + bits), order<Plain<T>>(table, "u" + bits);
    equality<Plain<S>>(table, "s" + bits), order<Plain<S>>(table, "s" + bits);
    comparison<Plain<T>, less>(table, "lo", "u" + bits), comparison<Plain<T>, at_most>(table, "ls", "u" + bits);
    comparison<Plain<T>, greater>(table, "hi", "u" + bits), comparison<Plain<T>, at_least>(table, "hs", "u" + bits);
}

// With a NaN, the plain comparisons are false, and those that end in u are true.
template <class Kind>
void floats(Table& table, const std::string& type) {
    order<Kind>(table, type);
    comparison<Kind, equal>(table, "eq", type);
    comparison<Kind, [](auto a, auto b) { return a != b && !unordered(a, b); }>(table, "ne", type);
    comparison<Kind, [](auto a, auto b) { return a == b || unordered(a, b); }>(table, "equ", type);
    comparison<Kind, unequal>(table, "neu", type);
    comparison<Kind, [](auto a, auto b) { return !(a >= b); }>(table, "ltu", type);
    comparison<Kind, [](auto a, auto b) { return !greater(a, b); }>(table, "leu", type);
    comparison<Kind, [](auto a, auto b) { return !(a <= b); }>(table, "gtu", type);
    comparison<Kind, [](auto a, auto b) { return !(a < b); }>(table, "geu", type);
    comparison<Kind, [](auto a, auto b) { return !unordered(a, b); }>(table, "num", type);
    comparison<Kind, unordered>(table, "nan", type);
}

} // namespace

void compare_opcodes(Table& table) {
    integers<u16>(table, "16"), integers<u32>(table, "32"), integers<u64>(table, "64");
    floats<Plain<float>>(table, "f32"), floats<Flushed>(table, "ftz.f32"), floats<Plain<double>>(table, "f64");
    floats<Single<Half>>(table, "f16"), floats<Single<BFloat>>(table, "bf16");
    floats<Packed<Half>>(table, "f16x2"), floats<Packed<BFloat>>(table, "bf16x2");
}

} // namespace emulator
