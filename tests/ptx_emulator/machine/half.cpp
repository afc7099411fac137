// half and bfloat16: alone, in pairs, and mixed with floats.
#include "numbers.h"

namespace emulator {
namespace {

template <class T, auto f, class... A>
void single_and_pair(Table& table, const std::string& opcode) {
    table.pure<[](A... x) { return f(x...); }>(opcode);
    table.pure<[](Pair<A>... x) { return Pair<T>{f(x.low...), f(x.high...)}; }>(opcode + "x2");
}

// Sums and products are rounded correctly via float: it has twice a half's digits and two more.
template <class T>
void arithmetic(Table& table, const std::string& type) {
    for (const std::string rn : {"", ".rn"}) {
        single_and_pair<T, [](T a, T b) { return T::of(float(a) + float(b)); }, T, T>(table, "add" + rn + type);
        single_and_pair<T, [](T a, T b) { return T::of(float(a) - float(b)); }, T, T>(table, "sub" + rn + type);
        single_and_pair<T, [](T a, T b) { return T::of(float(a) * float(b)); }, T, T>(table, "mul" + rn + type);
    }
    single_and_pair<T, [](T a, T b, T c) { return T::of(odd_fma(a, b, c)); }, T, T, T>(table, "fma.rn" + type);
    single_and_pair<T, [](T a) { return T{u16(a.bits ^ 0x8000)}; }, T>(table, "neg" + type);
    single_and_pair<T, [](T a) { return T{u16(a.bits & 0x7FFF)}; }, T>(table, "abs" + type);
    const auto order = [&]<auto pick, class... A>(const char* name) {
        single_and_pair<T, [](A... x) { return T::of(pick(float(x)...)); }, A...>(table, name + type);
    };
    order.template operator()<smaller<false, float>, T, T>("min");
    order.template operator()<larger<false, float>, T, T>("max");
    order.template operator()<smaller<true, float>, T, T>("min.NaN");
    order.template operator()<larger<true, float>, T, T>("max.NaN");
    order.template operator()<xorsign<smaller<false, float>>, T, T>("min.xorsign.abs");
    order.template operator()<xorsign<larger<false, float>>, T, T>("max.xorsign.abs");
    order.template operator()<xorsign<smaller<true, float>>, T, T>("min.NaN.xorsign.abs");
    order.template operator()<xorsign<larger<true, float>>, T, T>("max.NaN.xorsign.abs");
}

template <Round mode, bool saturate, auto f, class... A>
float finished(A... x) {
    const float result = rounded<mode, f, float>(x...);
    return canonical(saturate ? saturated(result) : result);
}

template <class T, Round mode, bool saturate>
void mixed(Table& table, const char* rounding, const char* type) {
    const auto named = [&](const char* name) { return dotted({name, rounding, saturate ? "sat" : "", "f32", type}); };
    constexpr auto fused = [](float a, float b, float c) { return std::fma(a, b, c); };
    constexpr auto sum = [](float a, float b) { return a + b; };
    table.pure<[](T a, float c) { return finished<mode, saturate, sum>(float(a), c); }>(named("add"));
    table.pure<[](T a, float c) { return finished<mode, saturate, sum>(float(a), -c); }>(named("sub"));
    if (*rounding) // fma has no default
        table.pure<[](T a, T b, float c) { return finished<mode, saturate, fused>(float(a), float(b), c); }>(
            named("fma"));
}

// One or two halves and a float: sm_100 and later.
template <class T, bool saturate>
void all_mixed(Table& table, const char* type) {
    mixed<T, Round::nearest, saturate>(table, "", type), mixed<T, Round::nearest, saturate>(table, "rn", type);
    mixed<T, Round::zero, saturate>(table, "rz", type), mixed<T, Round::down, saturate>(table, "rm", type);
    mixed<T, Round::up, saturate>(table, "rp", type);
}

} // namespace

void half_opcodes(Table& table) {
    arithmetic<Half>(table, ".f16"), arithmetic<BFloat>(table, ".bf16");
    all_mixed<Half, false>(table, "f16"), all_mixed<Half, true>(table, "f16");
    all_mixed<BFloat, false>(table, "bf16"), all_mixed<BFloat, true>(table, "bf16");
}

} // namespace emulator
