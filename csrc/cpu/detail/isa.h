// The best instruction set of this machine, among those that the kernels are compiled for.
#pragma once

#include <cstdlib>
#include <string_view>

namespace v1fast {

enum class Isa { baseline, avx2, avx512 };

#if !defined(__x86_64__)
inline bool has_avx512() { return false; }
inline bool has_avx2() { return false; }
#elif defined(__clang__) && __clang_major__ < 18
// It does not know the levels by their names. No processor has these features without the rest of its level.
inline bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2");
}
inline bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#else
inline bool has_avx512() { return __builtin_cpu_supports("x86-64-v4"); }
inline bool has_avx2() { return __builtin_cpu_supports("x86-64-v3"); }
#endif

// V1FAST_MAX_ISA=baseline or avx2 excludes better ones: for tests, and to find the cause of a difference.
inline Isa best_isa() {
    static const Isa best = [] {
        const char* most = std::getenv("V1FAST_MAX_ISA");
        const std::string_view limit = most ? most : "";
        if (limit != "baseline" && limit != "avx2" && has_avx512())
            return Isa::avx512;
        if (limit != "baseline" && has_avx2())
            return Isa::avx2;
        return Isa::baseline;
    }();
    return best;
}

} // namespace v1fast
