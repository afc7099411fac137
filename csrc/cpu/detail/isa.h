// The best instruction set of this machine, among those that the kernels are compiled for.
#pragma once

#include <cstdlib>
#include <string_view>

namespace v1fast {

enum class Isa { baseline, avx2, avx512 };

// V1FAST_MAX_ISA=baseline or avx2 excludes better ones: for tests, and to find the cause of a difference.
inline Isa best_isa() {
    static const Isa best = [] {
        const char* most = std::getenv("V1FAST_MAX_ISA");
        const std::string_view limit = most ? most : "";
#if defined(__x86_64__)
        if (limit != "baseline" && limit != "avx2" && __builtin_cpu_supports("x86-64-v4"))
            return Isa::avx512;
        if (limit != "baseline" && __builtin_cpu_supports("x86-64-v3"))
            return Isa::avx2;
#endif
        return Isa::baseline;
    }();
    return best;
}

} // namespace v1fast
