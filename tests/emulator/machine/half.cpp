// half and bfloat16, alone and in pairs.
#include "numbers.h"

namespace emulator {
namespace {

template <class T, auto f, class... A>
void single_and_pair(Table& table, const std::string& opcode) {
    table.pure<[](A... x) { return f(x...); }>(opcode);
    table.pure<[](Pair<A>... x) { return Pair<T>{f(x.low...), f(x.high...)}; }>(opcode + "x2");
}

// Sums and products are rounded right by way of a float: it has twice a half's digits and two more.
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

} // namespace

void half_opcodes(Table& table) { arithmetic<Half>(table, ".f16"), arithmetic<BFloat>(table, ".bf16"); }

} // namespace emulator
