// cvt: between integers, between floats, between the two, and to packed halves.
#include <limits>

#include "numbers.h"

namespace emulator {
namespace {

template <class T>
struct Named {
    using type = T;
    const char* name;
};

template <class F>
void each_integer(F f) {
    f(Named<u8>{"u8"}), f(Named<s8>{"s8"}), f(Named<u16>{"u16"}), f(Named<s16>{"s16"});
    f(Named<u32>{"u32"}), f(Named<s32>{"s32"}), f(Named<u64>{"u64"}), f(Named<s64>{"s64"});
}
template <class F>
void each_float(F f) {
    f(Named<Half>{"f16"}), f(Named<BFloat>{"bf16"}), f(Named<float>{"f32"}), f(Named<double>{"f64"});
}

template <class To, class From>
To clamped(From x) {
    if (s128(x) < s128(std::numeric_limits<To>::min()))
        return std::numeric_limits<To>::min();
    if (s128(x) > s128(std::numeric_limits<To>::max()))
        return std::numeric_limits<To>::max();
    return To(x);
}

// The rounding is chosen by a call, not by a template argument, because there are many opcodes.
double whole(double x, Round mode) {
    if (mode == Round::nearest)
        return std::nearbyint(x);
    return mode == Round::zero ? std::trunc(x) : mode == Round::down ? std::floor(x) : std::ceil(x);
}

// Clamped to the range, like the hardware with and without .sat. NaN gives 0.
template <class To>
[[gnu::noinline]] To to_integer(double x, Round mode) {
    const double rounded = whole(x, mode);
    if (std::isnan(rounded))
        return 0;
    if (rounded <= double(std::numeric_limits<To>::min()))
        return std::numeric_limits<To>::min();
    if (rounded >= double(std::numeric_limits<To>::max()))
        return std::numeric_limits<To>::max();
    return To(rounded);
}

// A long double holds every 64-bit integer, so there is only one rounding.
template <class T>
[[gnu::noinline]] T to_float(long double x, Round mode) {
    if constexpr (std::is_floating_point_v<T>) {
        constexpr int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
        volatile long double held = x;
        std::fesetround(modes[int(mode)]);
        volatile T result = T(held);
        std::fesetround(FE_TONEAREST);
        return canonical(T(result));
    } else {
        return T::of(x, mode);
    }
}

double exactly(double x) { return x; }
double exactly(Half x) { return float(x); }
double exactly(BFloat x) { return float(x); }

void between_integers(Table& table) {
    each_integer([&](auto to) {
        each_integer([&](auto from) {
            using To = typename decltype(to)::type;
            using From = typename decltype(from)::type;
            table.pure<[](From x) { return To(x); }>(dotted({"cvt", to.name, from.name}));
            table.pure<[](From x) { return clamped<To>(x); }>(dotted({"cvt.sat", to.name, from.name}));
        });
    });
}

template <Round mode>
void integers_and_floats(Table& table, const std::string& suffix) {
    each_float([&](auto real) {
        using F = typename decltype(real)::type;
        each_integer([&](auto integer) {
            using I = typename decltype(integer)::type;
            const char *i = integer.name, *f = real.name;
            const std::string to = "cvt.r" + suffix, whole = to + "i";
            table.pure<[](I x) { return to_float<F>(x, mode); }>(dotted({to, f, i}));
            for (const char* sat : {"", "sat"}) {
                table.pure<[](F x) { return to_integer<I>(exactly(x), mode); }>(dotted({whole, sat, i, f}));
                if constexpr (std::is_same_v<F, float>)
                    table.pure<[](F x) { return to_integer<I>(flushed(x), mode); }>(dotted({whole, "ftz", sat, i, f}));
            }
        });
    });
}

// A float to a whole number, still a float.
template <Round mode>
void to_whole(Table& table, const std::string& suffix) {
    const std::string opcode = "cvt.r" + suffix + "i";
    table.pure<[](float x) { return canonical(float(whole(x, mode))); }>(opcode + ".f32.f32");
    table.pure<[](float x) { return canonical(float(whole(flushed(x), mode))); }>(opcode + ".ftz.f32.f32");
    table.pure<[](double x) { return canonical(whole(x, mode)); }>(opcode + ".f64.f64");
    table.pure<[](Half x) { return Half::of(whole(float(x), mode)); }>(opcode + ".f16.f16");
}

// The first operand becomes the upper half.
template <class T>
Pair<T> pair(double a, double b, Round mode) {
    return {T::of(b, mode), T::of(a, mode)};
}

template <Round mode>
void narrowing(Table& table, const std::string& suffix) {
    const std::string opcode = "cvt.r" + suffix;
    table.pure<[](double x) { return to_float<float>(x, mode); }>(opcode + ".f32.f64");
    table.pure<[](double x) { return to_float<float>(saturated(x), mode); }>(opcode + ".sat.f32.f64");
    table.pure<[](float x) { return Half::of<double>(x, mode); }>(opcode + ".f16.f32");
    table.pure<[](float x) { return Half::of<double>(flushed(x), mode); }>(opcode + ".ftz.f16.f32");
    table.pure<[](float x) { return Half::of<double>(saturated(x), mode); }>(opcode + ".sat.f16.f32");
    table.pure<[](double x) { return Half::of<double>(x, mode); }>(opcode + ".f16.f64");
    if constexpr (mode == Round::nearest || mode == Round::zero) {
        table.pure<[](float x) { return BFloat::of<double>(x, mode); }>(opcode + ".bf16.f32");
        table.pure<[](float a, float b) { return pair<Half>(a, b, mode); }>(opcode + ".f16x2.f32");
        table.pure<[](float a, float b) { return pair<BFloat>(a, b, mode); }>(opcode + ".bf16x2.f32");
    }
}

void widening(Table& table) {
    table.pure<[](Half x) { return canonical(float(x)); }>("cvt.f32.f16");
    table.pure<[](Half x) { return canonical(float(x)); }>("cvt.ftz.f32.f16"); // every half is a normal float
    table.pure<[](BFloat x) { return canonical(float(x)); }>("cvt.f32.bf16");
    table.pure<[](Half x) { return canonical(double(float(x))); }>("cvt.f64.f16");
    table.pure<[](float x) { return canonical(double(x)); }>("cvt.f64.f32");
    table.pure<[](float x) { return canonical(double(flushed(x))); }>("cvt.ftz.f64.f32");
    table.pure<[](float x) { return saturated(x); }>("cvt.sat.f32.f32");
    table.pure<[](float x) { return saturated(flushed(x)); }>("cvt.ftz.sat.f32.f32");
    table.pure<[](float x) { return to_tf32(x); }>("cvt.rna.tf32.f32");
}

} // namespace

void convert_opcodes(Table& table) {
    between_integers(table);
    integers_and_floats<Round::nearest>(table, "n"), integers_and_floats<Round::zero>(table, "z");
    integers_and_floats<Round::down>(table, "m"), integers_and_floats<Round::up>(table, "p");
    to_whole<Round::nearest>(table, "n"), to_whole<Round::zero>(table, "z");
    to_whole<Round::down>(table, "m"), to_whole<Round::up>(table, "p");
    narrowing<Round::nearest>(table, "n"), narrowing<Round::zero>(table, "z");
    narrowing<Round::down>(table, "m"), narrowing<Round::up>(table, "p");
    widening(table);
}

} // namespace emulator
