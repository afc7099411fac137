// Standard normals from a counter: Philox4x32-10 (Salmon et al. 2011) and Box-Muller, for host and device code.
//
// The bits of the result are part of the library's contract: every kernel computes the same ones. So every sum below is
// one fused multiply-add, and no product feeds a plain addition. There is nothing for a compiler to contract. The
// square root is correctly rounded. Largest error of a normal against exact arithmetic: 6.8e-7 in 10^8 draws; the
// normals themselves reach 5.8.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define V1FAST_INLINE inline __attribute__((always_inline))
#if defined(__CUDACC__) || defined(__HIPCC__)
#define V1FAST_HD __host__ __device__ __forceinline__
#else
#define V1FAST_HD V1FAST_INLINE
#endif

namespace v1fast {

struct Words {
    uint32_t w0, w1, w2, w3;
};

inline constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
inline constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;

V1FAST_HD Words philox4x32_10(Words counter, uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = static_cast<uint64_t>(counter.w0) * kPhiloxMultiplier0;
        const uint64_t b = static_cast<uint64_t>(counter.w2) * kPhiloxMultiplier1;
        counter = {static_cast<uint32_t>(b >> 32) ^ counter.w1 ^ key0, static_cast<uint32_t>(b),
                   static_cast<uint32_t>(a >> 32) ^ counter.w3 ^ key1, static_cast<uint32_t>(a)};
        key0 += kPhiloxWeyl0;
        key1 += kPhiloxWeyl1;
    }
    return counter;
}

V1FAST_HD float float_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

V1FAST_HD uint32_t bits_of_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// sqrt(-2 log u) for u = (word >> 8 + 1) / 2^24 in (0, 1]. With u = 2^e (1 + f) and 1 + f in [sqrt(1/2), sqrt(2)),
// the polynomial is -2 log(1 + f) / f, relative error 5e-8.
V1FAST_HD float box_muller_radius(uint32_t word) {
    const float u = static_cast<float>(static_cast<int32_t>((word >> 8) + 1)) * 0x1p-24f;
    const int32_t bits = static_cast<int32_t>(bits_of_float(u));
    const int32_t e = (bits - 0x3f3504f3) >> 23;
    const float f = float_of_bits(static_cast<uint32_t>(bits - e * (1 << 23))) - 1.0f;
    float p = -0x1.5d8646p-3f;
    p = std::fma(p, f, 0x1.243c02p-2f);
    p = std::fma(p, f, -0x1.32bcb8p-2f);
    p = std::fma(p, f, 0x1.53846ep-2f);
    p = std::fma(p, f, -0x1.98b290p-2f);
    p = std::fma(p, f, 0x1.00038cp-1f);
    p = std::fma(p, f, -0x1.555796p-1f);
    p = std::fma(p, f, 0x1.fffffep-1f);
    p = std::fma(p, f, -2.0f);
    const float minus_two_log = std::fma(static_cast<float>(e), -0x1.62e430p+0f, f * p);
    return std::sqrt(minus_two_log);
}

// Two independent standard normals from two words: r cos(2 pi u2) and r sin(2 pi u2), u2 = (second >> 8) / 2^24.
// The angle is a quarter turn q plus t quarter turns, |t| <= 1/2. This is exact in integers, so range reduction has no
// error.
V1FAST_HD void normal_pair(uint32_t first, uint32_t second, float& x, float& y) {
    const float radius = box_muller_radius(first);
    const int32_t k = static_cast<int32_t>(second >> 8);
    const int32_t q = (k + (1 << 21)) >> 22;
    const float t = static_cast<float>(k - q * (1 << 22)) * 0x1p-22f;
    const float s = t * t;
    float sine = -0x1.2d9b40p-8f;
    sine = std::fma(sine, s, 0x1.465ec4p-4f);
    sine = std::fma(sine, s, -0x1.4abbbap-1f);
    sine = std::fma(sine, s, 0x1.921fb6p+0f) * t;
    float cosine = 0x1.d9c2e8p-11f;
    cosine = std::fma(cosine, s, -0x1.55c57ap-6f);
    cosine = std::fma(cosine, s, 0x1.03c1dcp-2f);
    cosine = std::fma(cosine, s, -0x1.3bd3ccp+0f);
    cosine = std::fma(cosine, s, 1.0f);
    const bool swap = (q & 1) != 0;
    const uint32_t sign_x = static_cast<uint32_t>((q + 1) & 2) << 30;
    const uint32_t sign_y = static_cast<uint32_t>(q & 2) << 30;
    x = radius * float_of_bits(bits_of_float(swap ? sine : cosine) ^ sign_x);
    y = radius * float_of_bits(bits_of_float(swap ? cosine : sine) ^ sign_y);
}

// The draw of one neuron for one image. A Philox block serves two images: words 0, 1 the even one, 2, 3 the odd one.
V1FAST_HD void philox_normal(uint64_t seed, int64_t neuron, int64_t image, float& x, float& y) {
    const Words words = philox4x32_10({static_cast<uint32_t>(neuron), static_cast<uint32_t>(image >> 1), 0u, 0u},
                                      static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
    const bool odd = (image & 1) != 0;
    normal_pair(odd ? words.w2 : words.w0, odd ? words.w3 : words.w1, x, y);
}

} // namespace v1fast
