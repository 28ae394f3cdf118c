// Thirty-two 16-bit lanes, for the states of 32 trellises side by side; what simd.h is for 32-bit lanes.
#pragma once

#include "simd.h"

namespace EXL_ISA {

#if EXL_LEVEL >= 2

using w32 = __m512i;

inline w32 w_load(const void* p) { return _mm512_loadu_si512(p); }
inline void w_store(void* p, w32 x) { _mm512_storeu_si512(p, x); }
inline w32 w_set(uint16_t x) { return _mm512_set1_epi16(int16_t(x)); }
inline w32 w_add(w32 a, w32 b) { return _mm512_add_epi16(a, b); }
inline w32 w_and(w32 a, w32 b) { return _mm512_and_si512(a, b); }
inline w32 w_xor(w32 a, w32 b) { return _mm512_xor_si512(a, b); }
inline w32 w_mul_low(w32 a, w32 b) { return _mm512_mullo_epi16(a, b); }
inline w32 w_mul_high(w32 a, w32 b) { return _mm512_mulhi_epu16(a, b); }
// All ones where a >= b, unsigned.
inline w32 w_at_least(w32 a, w32 b) { return _mm512_movm_epi16(_mm512_cmpge_epu16_mask(a, b)); }
// The sum of the two bytes of every lane.
inline w32 w_byte_sum(w32 x) { return _mm512_maddubs_epi16(x, _mm512_set1_epi8(1)); }
// The upper 16 bits of (before : after) << n, 0 < n < 16.
template <int n> inline w32 w_funnel(w32 before, w32 after) {
#if EXL_LEVEL >= 3
    return _mm512_shldi_epi16(before, after, n);
#else
    return _mm512_or_si512(_mm512_slli_epi16(before, n), _mm512_srli_epi16(after, 16 - n));
#endif
}
// Eight bytes, repeated.
inline w32 w_repeat8(const void* p) {
    int64_t eight;
    __builtin_memcpy(&eight, p, 8);
    return _mm512_set1_epi64(eight);
}
// acc[i] += x[2i] * q[2i] + x[2i+1] * q[2i+1], signed.
inline i32v w_dot(i32v acc, w32 x, w32 q) { return _mm512_dpwssd_epi32(acc, x, q); }
// Sums of neighbours, within every 128 bits: [a0+a1, a2+a3, b0+b1, b2+b3].
inline i32v i_pair_sum(i32v a, i32v b) {
    const __m512 x = _mm512_castsi512_ps(a), y = _mm512_castsi512_ps(b);
    return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)),
                            _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xdd)));
}
// fp16(a) + fp16(b), rounded to fp16: lanes 0..15 and 16..31 as floats.
inline void w_half_sum(w32 a, w32 b, f32v& low, f32v& high) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    const auto sum = [](__m256i x, __m256i y) {
        return _mm512_cvtph_ps(_mm512_cvtps_ph(_mm512_add_ps(_mm512_cvtph_ps(x), _mm512_cvtph_ps(y)), nearest));
    };
    low = sum(_mm512_castsi512_si256(a), _mm512_castsi512_si256(b));
    high = sum(_mm512_extracti64x4_epi64(a, 1), _mm512_extracti64x4_epi64(b, 1));
}
// Four floats, repeated.
inline f32v f_repeat4(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
// Lane i gets lane i ^ distance.
template <int distance> inline f32v f_swap(f32v x) {
    if constexpr (distance == 1) return _mm512_permute_ps(x, 0xb1);
    if constexpr (distance == 2) return _mm512_permute_ps(x, 0x4e);
    if constexpr (distance == 4) return _mm512_shuffle_f32x4(x, x, 0xb1);
    return _mm512_shuffle_f32x4(x, x, 0x4e);
}

#elif EXL_LEVEL == 1

struct w32 {
    __m256i a, b;
};

inline w32 w_load(const void* p) {
    const __m256i* q = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline void w_store(void* p, w32 x) {
    __m256i* q = static_cast<__m256i*>(p);
    _mm256_storeu_si256(q, x.a);
    _mm256_storeu_si256(q + 1, x.b);
}
inline w32 w_set(uint16_t x) { return {_mm256_set1_epi16(int16_t(x)), _mm256_set1_epi16(int16_t(x))}; }
inline w32 w_add(w32 x, w32 y) { return {_mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b)}; }
inline w32 w_and(w32 x, w32 y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
inline w32 w_xor(w32 x, w32 y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
inline w32 w_mul_low(w32 x, w32 y) { return {_mm256_mullo_epi16(x.a, y.a), _mm256_mullo_epi16(x.b, y.b)}; }
inline w32 w_mul_high(w32 x, w32 y) { return {_mm256_mulhi_epu16(x.a, y.a), _mm256_mulhi_epu16(x.b, y.b)}; }
inline w32 w_at_least(w32 x, w32 y) {
    return {_mm256_cmpeq_epi16(_mm256_max_epu16(x.a, y.a), x.a), _mm256_cmpeq_epi16(_mm256_max_epu16(x.b, y.b), x.b)};
}
inline w32 w_byte_sum(w32 x) {
    const __m256i one = _mm256_set1_epi8(1);
    return {_mm256_maddubs_epi16(x.a, one), _mm256_maddubs_epi16(x.b, one)};
}
template <int n> inline w32 w_funnel(w32 before, w32 after) {
    return {_mm256_or_si256(_mm256_slli_epi16(before.a, n), _mm256_srli_epi16(after.a, 16 - n)),
            _mm256_or_si256(_mm256_slli_epi16(before.b, n), _mm256_srli_epi16(after.b, 16 - n))};
}
inline w32 w_repeat8(const void* p) {
    int64_t eight;
    __builtin_memcpy(&eight, p, 8);
    return {_mm256_set1_epi64x(eight), _mm256_set1_epi64x(eight)};
}
inline i32v w_dot(i32v acc, w32 x, w32 q) {
    return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(x.a, q.a)), _mm256_add_epi32(acc.b, _mm256_madd_epi16(x.b, q.b))};
}
inline i32v i_pair_sum(i32v x, i32v y) { return {_mm256_hadd_epi32(x.a, y.a), _mm256_hadd_epi32(x.b, y.b)}; }
inline f32v half_sum(__m256i x, __m256i y) {
    const auto sum = [](__m128i p, __m128i q) {
        const __m256 exact = _mm256_add_ps(_mm256_cvtph_ps(p), _mm256_cvtph_ps(q));
        return _mm256_cvtph_ps(_mm256_cvtps_ph(exact, _MM_FROUND_TO_NEAREST_INT));
    };
    return {sum(_mm256_castsi256_si128(x), _mm256_castsi256_si128(y)),
            sum(_mm256_extracti128_si256(x, 1), _mm256_extracti128_si256(y, 1))};
}
inline void w_half_sum(w32 x, w32 y, f32v& low, f32v& high) {
    low = half_sum(x.a, y.a);
    high = half_sum(x.b, y.b);
}
inline f32v f_repeat4(const float* p) {
    const __m256 four = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
    return {four, four};
}
template <int distance> inline f32v f_swap(f32v x) {
    if constexpr (distance == 1) return {_mm256_permute_ps(x.a, 0xb1), _mm256_permute_ps(x.b, 0xb1)};
    if constexpr (distance == 2) return {_mm256_permute_ps(x.a, 0x4e), _mm256_permute_ps(x.b, 0x4e)};
    if constexpr (distance == 4) return {_mm256_permute2f128_ps(x.a, x.a, 1), _mm256_permute2f128_ps(x.b, x.b, 1)};
    return {x.b, x.a};
}

#else

struct w32 {
    uint16_t v[32];
};

template <typename F> inline w32 w_each(F f) {
    w32 r;
    for (int i = 0; i < 32; ++i) r.v[i] = static_cast<uint16_t>(f(i));
    return r;
}
inline w32 w_load(const void* p) {
    w32 r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
inline void w_store(void* p, w32 x) { std::memcpy(p, x.v, sizeof x.v); }
inline w32 w_set(uint16_t x) {
    return w_each([&](int) { return x; });
}
inline w32 w_add(w32 a, w32 b) {
    return w_each([&](int i) { return a.v[i] + b.v[i]; });
}
inline w32 w_and(w32 a, w32 b) {
    return w_each([&](int i) { return a.v[i] & b.v[i]; });
}
inline w32 w_xor(w32 a, w32 b) {
    return w_each([&](int i) { return a.v[i] ^ b.v[i]; });
}
inline w32 w_mul_low(w32 a, w32 b) {
    return w_each([&](int i) { return uint32_t(a.v[i]) * b.v[i]; });
}
inline w32 w_mul_high(w32 a, w32 b) {
    return w_each([&](int i) { return uint32_t(a.v[i]) * b.v[i] >> 16; });
}
inline w32 w_at_least(w32 a, w32 b) {
    return w_each([&](int i) { return a.v[i] >= b.v[i] ? 0xffff : 0; });
}
inline w32 w_byte_sum(w32 x) {
    return w_each([&](int i) { return (x.v[i] & 255) + (x.v[i] >> 8); });
}
template <int n> inline w32 w_funnel(w32 before, w32 after) {
    return w_each([&](int i) { return before.v[i] << n | after.v[i] >> (16 - n); });
}
inline w32 w_repeat8(const void* p) {
    uint16_t four[4];
    std::memcpy(four, p, 8);
    return w_each([&](int i) { return four[i % 4]; });
}
inline i32v w_dot(i32v acc, w32 x, w32 q) {
    const auto product = [&](int i) { return int32_t(int16_t(x.v[i])) * int16_t(q.v[i]); };
    return i_each([&](int i) { return acc.v[i] + product(2 * i) + product(2 * i + 1); });
}
inline i32v i_pair_sum(i32v a, i32v b) {
    return i_each([&](int i) {
        const i32v& from = i & 2 ? b : a;
        const int first = i / 4 * 4 + 2 * (i & 1);
        return from.v[first] + from.v[first + 1];
    });
}
inline void w_half_sum(w32 a, w32 b, f32v& low, f32v& high) {
    const auto sum = [&](int i) {
        return exl::half_to_float(exl::float_to_half(exl::half_to_float(a.v[i]) + exl::half_to_float(b.v[i])));
    };
    low = f_each(sum);
    high = f_each([&](int i) { return sum(i + 16); });
}
inline f32v f_repeat4(const float* p) {
    return f_each([&](int i) { return p[i % 4]; });
}
template <int distance> inline f32v f_swap(f32v x) {
    return f_each([&](int i) { return x.v[i ^ distance]; });
}

#endif

}  // namespace EXL_ISA
