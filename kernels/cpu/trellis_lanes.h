// Thirty-two 16-bit lanes, with what a step of trellis_search.h does to them.
#pragma once

#include <cstdint>
#include <cstring>

#if EXL_LEVEL >= 1
#include <immintrin.h>
#endif

namespace EXL_ISA {

constexpr int lanes = 32;

// Where lane p of a vector of states lies in natural order, and back: the last five bits are turned by min(k, 5).
constexpr int turned(int k, int p) { return k >= 5 ? p : (p << k | p >> (5 - k)) & 31; }

#if EXL_LEVEL >= 2

using u16v = __m512i;

inline u16v w_load(const void* p) { return _mm512_loadu_si512(p); }
inline void w_store(void* p, u16v x) { _mm512_storeu_si512(p, x); }
inline u16v w_set(uint16_t x) { return _mm512_set1_epi16(static_cast<short>(x)); }
inline u16v w_add(u16v a, u16v b) { return _mm512_add_epi16(a, b); }
inline u16v w_sub(u16v a, u16v b) { return _mm512_sub_epi16(a, b); }
inline u16v w_difference(u16v a, u16v b) { return _mm512_subs_epi16(a, b); }
inline u16v w_min(u16v a, u16v b) { return _mm512_min_epu16(a, b); }
inline u16v w_double(u16v a) { return _mm512_adds_epi16(a, a); }
inline u16v w_square(u16v a) { return _mm512_mulhrs_epi16(a, a); }
// 2^(5 - k) neighbours, again and again; from k = 5 on one number, which p holds twice.
template <int k> inline u16v w_spread(const uint16_t* p) {
    if constexpr (k == 1) return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    if constexpr (k == 2) return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    if constexpr (k == 3) {
        int64_t four;
        std::memcpy(&four, p, 8);
        return _mm512_set1_epi64(four);
    }
    int32_t two;
    std::memcpy(&two, p, 4);
    return _mm512_set1_epi32(two);
}
// Lanes of turned states in natural order.
template <int k> inline u16v w_natural(u16v x) {
    if constexpr (k >= 5) return x;
    alignas(64) static constexpr struct Order {
        uint16_t lane[lanes];
        constexpr Order() : lane() {
            for (int p = 0; p < lanes; ++p) lane[turned(k, p)] = uint16_t(p);
        }
    } order;
    return _mm512_permutexvar_epi16(_mm512_load_si512(order.lane), x);
}
inline uint16_t w_lowest(u16v x) {
    __m256i y = _mm256_min_epu16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    const __m128i z = _mm_min_epu16(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    return uint16_t(_mm_cvtsi128_si32(_mm_minpos_epu16(z)));
}

#elif EXL_LEVEL == 1

struct u16v {
    __m256i a, b;
};

inline u16v w_load(const void* p) {
    const __m256i* q = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline void w_store(void* p, u16v x) {
    __m256i* q = static_cast<__m256i*>(p);
    _mm256_storeu_si256(q, x.a);
    _mm256_storeu_si256(q + 1, x.b);
}
inline u16v w_both(__m256i x) { return {x, x}; }
inline u16v w_set(uint16_t x) { return w_both(_mm256_set1_epi16(static_cast<short>(x))); }
inline u16v w_add(u16v x, u16v y) { return {_mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b)}; }
inline u16v w_sub(u16v x, u16v y) { return {_mm256_sub_epi16(x.a, y.a), _mm256_sub_epi16(x.b, y.b)}; }
inline u16v w_difference(u16v x, u16v y) { return {_mm256_subs_epi16(x.a, y.a), _mm256_subs_epi16(x.b, y.b)}; }
inline u16v w_min(u16v x, u16v y) { return {_mm256_min_epu16(x.a, y.a), _mm256_min_epu16(x.b, y.b)}; }
inline u16v w_double(u16v x) { return {_mm256_adds_epi16(x.a, x.a), _mm256_adds_epi16(x.b, x.b)}; }
inline u16v w_square(u16v x) { return {_mm256_mulhrs_epi16(x.a, x.a), _mm256_mulhrs_epi16(x.b, x.b)}; }
template <int k> inline u16v w_spread(const uint16_t* p) {
    if constexpr (k == 1) return w_both(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    if constexpr (k == 2)
        return w_both(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    if constexpr (k == 3) {
        long long four;
        std::memcpy(&four, p, 8);
        return w_both(_mm256_set1_epi64x(four));
    }
    int32_t two;
    std::memcpy(&two, p, 4);
    return w_both(_mm256_set1_epi32(two));
}
// Even lanes, then odd ones: turns numbers of lanes by a bit.
inline u16v w_halve(u16v x) {
    const __m256i low = _mm256_set1_epi32(0xffff);
    const __m256i even = _mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low));
    const __m256i odd = _mm256_packus_epi32(_mm256_srli_epi32(x.a, 16), _mm256_srli_epi32(x.b, 16));
    return {_mm256_permute4x64_epi64(even, 0xd8), _mm256_permute4x64_epi64(odd, 0xd8)};
}
// The first and the second half in turns: the inverse.
inline u16v w_interleave(u16v x) {
    const __m256i low = _mm256_unpacklo_epi16(x.a, x.b), high = _mm256_unpackhi_epi16(x.a, x.b);
    return {_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)};
}
template <int k> inline u16v w_natural(u16v x) {
    if constexpr (k == 1) return w_interleave(x);
    if constexpr (k == 2) return w_interleave(w_interleave(x));
    if constexpr (k == 3) return w_halve(w_halve(x));
    if constexpr (k == 4) return w_halve(x);
    return x;
}
inline uint16_t w_lowest(u16v x) {
    const __m256i y = _mm256_min_epu16(x.a, x.b);
    const __m128i z = _mm_min_epu16(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    return uint16_t(_mm_cvtsi128_si32(_mm_minpos_epu16(z)));
}

#else

struct u16v {
    uint16_t v[lanes];
};

template <typename F> inline u16v w_each(F f) {
    u16v r;
    for (int p = 0; p < lanes; ++p) r.v[p] = static_cast<uint16_t>(f(p));
    return r;
}
inline u16v w_load(const void* p) {
    u16v r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
inline void w_store(void* p, u16v x) { std::memcpy(p, x.v, sizeof x.v); }
inline u16v w_set(uint16_t x) {
    return w_each([&](int) { return x; });
}
inline u16v w_add(u16v a, u16v b) {
    return w_each([&](int p) { return a.v[p] + b.v[p]; });
}
inline u16v w_sub(u16v a, u16v b) {
    return w_each([&](int p) { return a.v[p] - b.v[p]; });
}
inline int w_clamped(int x) { return x > 0x7fff ? 0x7fff : x < -0x8000 ? -0x8000 : x; }
inline u16v w_difference(u16v a, u16v b) {
    return w_each([&](int p) { return w_clamped(static_cast<int16_t>(a.v[p]) - static_cast<int16_t>(b.v[p])); });
}
inline u16v w_min(u16v a, u16v b) {
    return w_each([&](int p) { return a.v[p] < b.v[p] ? a.v[p] : b.v[p]; });
}
inline u16v w_double(u16v a) {
    return w_each([&](int p) { return w_clamped(2 * static_cast<int16_t>(a.v[p])); });
}
// (a * a + 2^14) / 2^15, rounded down
inline u16v w_square(u16v a) {
    return w_each([&](int p) {
        const int x = static_cast<int16_t>(a.v[p]);
        return (x * x + (1 << 14)) >> 15;
    });
}
template <int k> inline u16v w_spread(const uint16_t* in) {
    constexpr int count = k >= 4 ? 2 : 32 >> k;
    return w_each([&](int p) { return in[p % count]; });
}
template <int k> inline u16v w_natural(u16v x) {
    u16v r;
    for (int p = 0; p < lanes; ++p) r.v[turned(k, p)] = x.v[p];
    return r;
}
inline uint16_t w_lowest(u16v x) {
    uint16_t low = x.v[0];
    for (int p = 1; p < lanes; ++p) low = x.v[p] < low ? x.v[p] : low;
    return low;
}

#endif

}  // namespace EXL_ISA
