// Number formats and roundings that C++ lacks: half, bfloat16, tf32, directed rounding, flushed subnormals.
#pragma once
#include <cfenv>
#include <cmath>

#include "machine.h"

namespace emulator {

enum class Round { nearest, zero, down, up };

// The code of `x` in a format of E exponent and M mantissa bits. NaN gives the hardware's single NaN.
template <int E, int M, class Real>
u32 narrow(Real x, Round mode) {
    constexpr u32 infinity = ((1u << E) - 1) << M;
    constexpr int bias = (1 << (E - 1)) - 1;
    const u32 sign = u32(std::signbit(x)) << (E + M);
    if (std::isnan(x))
        return (1u << (E + M)) - 1;
    if (std::isinf(x))
        return sign | infinity;
    int exponent;
    std::frexp(x, &exponent);
    if (x == 0)
        exponent = -bias;
    const int unit = std::max(exponent - 1, 1 - bias) - M; // exponent of the last place
    const Real scaled = std::ldexp(std::fabs(x), -unit);
    Real whole = std::floor(scaled);
    const Real rest = scaled - whole;
    const bool away = mode == Round::nearest ? rest > .5 || (rest == .5 && (u64(whole) & 1))
                                             : rest > 0 && mode == (sign ? Round::down : Round::up);
    whole += away;
    // A subnormal has exponent field 0 and no implicit one. The same sum is right for it, and for a carry out of it.
    const u64 code = (u64(unit + M + bias - 1) << M) + u64(whole);
    if (code < infinity)
        return sign | u32(code);
    const bool overflows = mode == Round::nearest || mode == (sign ? Round::down : Round::up);
    return sign | (overflows ? infinity : infinity - 1);
}

constexpr u32 nan_bits = 0x7FFFFFFF;

struct Half {
    u16 bits;
    template <class Real = double>
    static Half of(Real x, Round mode = Round::nearest) {
        return {u16(narrow<5, 10>(x, mode))};
    }
    operator float() const {
        const u32 sign = u32(bits & 0x8000) << 16, rest = u32(bits & 0x7FFF);
        if (rest > 0x7C00)
            return std::bit_cast<float>(sign | nan_bits);
        if (rest == 0x7C00)
            return std::bit_cast<float>(sign | 0x7F800000);
        return std::bit_cast<float>(sign | std::bit_cast<u32>(std::bit_cast<float>(rest << 13) * 0x1p112f));
    }
};

struct BFloat {
    u16 bits;
    template <class Real = double>
    static BFloat of(Real x, Round mode = Round::nearest) {
        return {u16(narrow<8, 7>(x, mode))};
    }
    operator float() const { return std::bit_cast<float>(u32(bits) << 16); }
};

template <class T>
struct Pair {
    T low, high;
};

// Round to tf32, ties away from zero (cvt.rna); and the bits that a tensor core reads of an unrounded float.
inline u32 to_tf32(float x) {
    const u32 bits = std::bit_cast<u32>(x);
    return std::isnan(x) || std::isinf(x) ? bits : (bits + 0x1000) & 0xFFFFE000;
}
inline float read_tf32(u32 bits) { return std::bit_cast<float>(bits & 0xFFFFE000); }

template <class T>
T flushed(T x) {
    return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(T(0), x) : x;
}
template <class T>
T saturated(T x) {
    return x > 0 ? (x < 1 ? x : T(1)) : T(0);
} // NaN gives 0

inline float canonical(float x) { return x == x ? x : std::bit_cast<float>(nan_bits); }
inline double canonical(double x) { return x == x ? x : std::bit_cast<double>(~u64(0) >> 1); }

// The larger of two values as in hardware: -0 < +0, and a NaN loses unless `keep_nan`.
template <bool keep_nan, class T>
T larger(T a, T b) {
    if (a != a)
        return keep_nan ? a : b;
    if (b != b)
        return keep_nan ? b : a;
    return a == b ? (std::signbit(a) ? b : a) : (a > b ? a : b);
}
template <bool keep_nan, class T>
T smaller(T a, T b) {
    if (a != a)
        return keep_nan ? a : b;
    if (b != b)
        return keep_nan ? b : a;
    return a == b ? (std::signbit(a) ? a : b) : (a < b ? a : b);
}

// The smaller or larger magnitude, with the product's sign. Compilers use it to clamp to a symmetric range.
template <auto pick>
float xorsign(float a, float b) {
    const float magnitude = pick(std::fabs(a), std::fabs(b));
    return std::copysign(magnitude, std::signbit(a) != std::signbit(b) ? -1.f : 1.f);
}

// f(x...) in one of the four rounding modes. Volatile keeps the compiler from moving the arithmetic out of the mode.
template <Round mode, auto f, class T, class... A>
T rounded(A... x) {
    if constexpr (mode == Round::nearest) {
        return f(x...);
    } else {
        constexpr int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
        std::fesetround(modes[int(mode)]);
        volatile T result = [](volatile A... y) { return f(A(y)...); }(x...);
        std::fesetround(FE_TONEAREST);
        return result;
    }
}

// a * b + c, exact before it is rounded to a half. The double sum is made odd if it is inexact, so that the second
// rounding is correct.
inline double odd_fma(float a, float b, float c) {
    const double product = double(a) * b, sum = product + c;
    if (!std::isfinite(sum))
        return sum;
    const double part = sum - product, error = (product - (sum - part)) + (c - part);
    if (error == 0 || (std::bit_cast<u64>(sum) & 1))
        return sum;
    return std::nextafter(sum, error > 0 ? INFINITY : -INFINITY);
}

} // namespace emulator
