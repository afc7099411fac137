// float and double: arithmetic in every rounding, flushing and saturation, approximations.
#include "numbers.h"

namespace emulator {
namespace {

// One operation of the table: f on flushed operands. Its result is saturated and flushed as the modifiers say.
template <class T, Round mode, bool flush, bool saturate, auto f, class... A>
T finished(A... x) {
    T result = rounded<mode, f, T>((flush ? flushed(x) : x)...);
    if (saturate)
        result = saturated(result);
    return canonical(flush ? flushed(result) : result);
}

template <class T, Round mode, bool flush, bool saturate, auto f>
void variant(Table& table, const std::string& opcode, T (*)(T)) {
    table.pure<[](T a) { return finished<T, mode, flush, saturate, f>(a); }>(opcode);
}
template <class T, Round mode, bool flush, bool saturate, auto f>
void variant(Table& table, const std::string& opcode, T (*)(T, T)) {
    table.pure<[](T a, T b) { return finished<T, mode, flush, saturate, f>(a, b); }>(opcode);
}
template <class T, Round mode, bool flush, bool saturate, auto f>
void variant(Table& table, const std::string& opcode, T (*)(T, T, T)) {
    table.pure<[](T a, T b, T c) { return finished<T, mode, flush, saturate, f>(a, b, c); }>(opcode);
}

// `name` with and without .ftz and, for arithmetic that has it, .sat. Only floats have either.
template <class T, Round mode, auto f, bool has_sat = false>
void flushes(Table& table, const std::string& name, const std::string& type) {
    variant<T, mode, false, false, f>(table, name + "." + type, +f);
    if constexpr (std::is_same_v<T, float>) {
        variant<T, mode, true, false, f>(table, name + ".ftz." + type, +f);
        if constexpr (has_sat) {
            variant<T, mode, false, true, f>(table, name + ".sat." + type, +f);
            variant<T, mode, true, true, f>(table, name + ".ftz.sat." + type, +f);
        }
    }
}

template <class T, auto f, bool has_sat>
void roundings(Table& table, const std::string& name, const std::string& type) {
    flushes<T, Round::nearest, f, has_sat>(table, name + ".rn", type);
    flushes<T, Round::zero, f, has_sat>(table, name + ".rz", type);
    flushes<T, Round::down, f, has_sat>(table, name + ".rm", type);
    flushes<T, Round::up, f, has_sat>(table, name + ".rp", type);
}

template <class T>
void arithmetic(Table& table, const std::string& type) {
    constexpr auto nearest = Round::nearest;
    constexpr auto sum = [](T a, T b) { return a + b; };
    constexpr auto difference = [](T a, T b) { return a - b; };
    constexpr auto product = [](T a, T b) { return a * b; };
    flushes<T, nearest, sum, true>(table, "add", type), roundings<T, sum, true>(table, "add", type);
    flushes<T, nearest, difference, true>(table, "sub", type), roundings<T, difference, true>(table, "sub", type);
    flushes<T, nearest, product, true>(table, "mul", type), roundings<T, product, true>(table, "mul", type);
    roundings<T, [](T a, T b, T c) { return std::fma(a, b, c); }, true>(table, "fma", type);
    roundings<T, [](T a, T b) { return a / b; }, false>(table, "div", type);
    roundings<T, [](T a) { return 1 / a; }, false>(table, "rcp", type);
    roundings<T, [](T a) { return std::sqrt(a); }, false>(table, "sqrt", type);
}

template <class T>
void signs_and_order(Table& table, const std::string& type) {
    constexpr auto nearest = Round::nearest;
    flushes<T, nearest, [](T a) { return -a; }>(table, "neg", type);
    flushes<T, nearest, [](T a) { return std::fabs(a); }>(table, "abs", type);
    flushes<T, nearest, [](T a, T b) { return smaller<false>(a, b); }>(table, "min", type);
    flushes<T, nearest, [](T a, T b) { return larger<false>(a, b); }>(table, "max", type);
    table.pure<[](T a, T b) { return std::copysign(b, a); }>("copysign." + type);
}

void float_only(Table& table) {
    constexpr auto nearest = Round::nearest;
    using T = float;
    for (const char* name : {"div.full", "div.approx"})
        flushes<T, nearest, [](T a, T b) { return a / b; }>(table, name, "f32");
    flushes<T, nearest, [](T a) { return 1 / a; }>(table, "rcp.approx", "f32");
    flushes<T, nearest, [](T a) { return std::sqrt(a); }>(table, "sqrt.approx", "f32");
    flushes<T, nearest, [](T a) { return float(1 / std::sqrt(double(a))); }>(table, "rsqrt.approx", "f32");
    flushes<T, nearest, [](T a) { return std::exp2(a); }>(table, "ex2.approx", "f32");
    flushes<T, nearest, [](T a) { return std::log2(a); }>(table, "lg2.approx", "f32");
    flushes<T, nearest, [](T a) { return std::sin(a); }>(table, "sin.approx", "f32");
    flushes<T, nearest, [](T a) { return std::cos(a); }>(table, "cos.approx", "f32");
    table.pure<[](T a) { return canonical(std::tanh(a)); }>("tanh.approx.f32");
    flushes<T, nearest, [](T a, T b) { return smaller<true>(a, b); }>(table, "min", "NaN.f32");
    flushes<T, nearest, [](T a, T b) { return larger<true>(a, b); }>(table, "max", "NaN.f32");
    flushes<T, nearest, [](T a, T b) { return xorsign<smaller<false, T>>(a, b); }>(table, "min", "xorsign.abs.f32");
    flushes<T, nearest, [](T a, T b) { return xorsign<larger<false, T>>(a, b); }>(table, "max", "xorsign.abs.f32");
    flushes<T, nearest, [](T a, T b) { return xorsign<smaller<true, T>>(a, b); }>(table, "min", "NaN.xorsign.abs.f32");
    flushes<T, nearest, [](T a, T b) { return xorsign<larger<true, T>>(a, b); }>(table, "max", "NaN.xorsign.abs.f32");
    // Three operands: sm_100 and later.
    flushes<T, nearest, [](T a, T b, T c) { return smaller<false>(smaller<false>(a, b), c); }>(table, "min", "f32");
    flushes<T, nearest, [](T a, T b, T c) { return larger<false>(larger<false>(a, b), c); }>(table, "max", "f32");
    flushes<T, nearest, [](T a, T b, T c) { return smaller<true>(smaller<true>(a, b), c); }>(table, "min", "NaN.f32");
    flushes<T, nearest, [](T a, T b, T c) { return larger<true>(larger<true>(a, b), c); }>(table, "max", "NaN.f32");
}

template <bool flush>
Pair<float> both(Pair<float> a, Pair<float> b, float (*f)(float, float)) {
    const auto one = [f](float x, float y) { return canonical(flush ? flushed(f(flushed(x), flushed(y))) : f(x, y)); };
    return {one(a.low, b.low), one(a.high, b.high)};
}

// Two floats in one 64-bit register: sm_100 and later.
template <bool flush>
void pairs(Table& table, const std::string& tail) {
    using P = Pair<float>;
    for (const std::string rn : {"", ".rn"}) {
        table.pure<[](P a, P b) { return both<flush>(a, b, [](float x, float y) { return x + y; }); }>("add" + rn +
                                                                                                       tail);
        table.pure<[](P a, P b) { return both<flush>(a, b, [](float x, float y) { return x - y; }); }>("sub" + rn +
                                                                                                       tail);
        table.pure<[](P a, P b) { return both<flush>(a, b, [](float x, float y) { return x * y; }); }>("mul" + rn +
                                                                                                       tail);
    }
    table.pure<[](P a, P b, P c) {
        constexpr auto f = [](float x, float y, float z) { return std::fma(x, y, z); };
        constexpr auto one = finished<float, Round::nearest, flush, false, f, float, float, float>;
        return P{one(a.low, b.low, c.low), one(a.high, b.high, c.high)};
    }>("fma.rn" + tail);
}

} // namespace

void float_opcodes(Table& table) {
    arithmetic<float>(table, "f32"), arithmetic<double>(table, "f64");
    signs_and_order<float>(table, "f32"), signs_and_order<double>(table, "f64");
    float_only(table);
    pairs<false>(table, ".f32x2"), pairs<true>(table, ".ftz.f32x2");
}

} // namespace emulator
