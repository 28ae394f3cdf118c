// Sixteen 32-bit lanes as two AVX2 registers (AVX2, FMA, F16C; AVX-VNNI is not needed).
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace EXL_ISA {

struct f32v {
    __m256 a, b;
};
struct i32v {
    __m256i a, b;
};

inline f32v f_zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline f32v f_set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline f32v f_load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void f_store(float* p, f32v x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
inline f32v f_add(f32v x, f32v y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline f32v f_sub(f32v x, f32v y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline f32v f_mul(f32v x, f32v y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline f32v f_div(f32v x, f32v y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline f32v f_fma(f32v x, f32v y, f32v z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline f32v f_max(f32v x, f32v y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline f32v f_min(f32v x, f32v y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline f32v f_abs(f32v x) {
    const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    return {_mm256_and_ps(x.a, mask), _mm256_and_ps(x.b, mask)};
}
inline f32v f_round(f32v x) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
inline f32v f_load_half(const uint16_t* p) {
    const __m128i* q = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
inline void f_store_half(uint16_t* p, f32v x) {
    __m128i* q = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(q, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(q + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
inline f32v f_load_bf16(const uint16_t* p) {
    const __m128i* q = reinterpret_cast<const __m128i*>(p);
    const __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128(q));
    const __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}
inline f32v f_bits(i32v x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
inline i32v i_bits(f32v x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
inline __m256i lane_mask(uint32_t bits) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), bit), bit);
}
inline f32v f_select(uint16_t keep, f32v x, f32v other) {
    return {_mm256_blendv_ps(other.a, x.a, _mm256_castsi256_ps(lane_mask(keep & 0xff))),
            _mm256_blendv_ps(other.b, x.b, _mm256_castsi256_ps(lane_mask(keep >> 8)))};
}

inline i32v i_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline i32v i_set(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline i32v i_load(const void* p) {
    const __m256i* q = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline void i_store(void* p, i32v x) {
    __m256i* q = static_cast<__m256i*>(p);
    _mm256_storeu_si256(q, x.a);
    _mm256_storeu_si256(q + 1, x.b);
}
inline i32v i_and(i32v x, i32v y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
inline i32v i_or(i32v x, i32v y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
inline i32v i_add(i32v x, i32v y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline i32v i_sub(i32v x, i32v y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
inline i32v i_mul(i32v x, i32v y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
template <int n> inline i32v i_shl(i32v x) { return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
template <int n> inline i32v i_shr(i32v x) { return {_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)}; }
template <int n> inline i32v i_shr_signed(i32v x) { return {_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)}; }
inline i32v i_shr_each(i32v x, i32v n) { return {_mm256_srlv_epi32(x.a, n.a), _mm256_srlv_epi32(x.b, n.b)}; }
inline f32v i_to_f(i32v x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline i32v f_to_i(f32v x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline i32v i_load_u8(const uint8_t* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepu8_epi32(raw), _mm256_cvtepu8_epi32(_mm_srli_si128(raw, 8))};
}
inline i32v i_load_s8(const int8_t* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi8_epi32(raw), _mm256_cvtepi8_epi32(_mm_srli_si128(raw, 8))};
}
inline void i_store_s8(int8_t* p, i32v x) {
    alignas(32) int32_t lane[16];
    i_store(lane, x);
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(lane[i]);
}
inline i32v i8_sub(i32v x, i32v y) { return {_mm256_sub_epi8(x.a, y.a), _mm256_sub_epi8(x.b, y.b)}; }
inline i32v i8_set(int8_t x) { return {_mm256_set1_epi8(x), _mm256_set1_epi8(x)}; }
// vpmaddubsw saturates at 2^15, which codes of 8 bits can reach: even and odd bytes are multiplied as 16-bit numbers.
inline __m256i dot_half(__m256i acc, __m256i u, __m256i s) {
    const __m256i low = _mm256_set1_epi16(0x00ff);
    const __m256i u_even = _mm256_and_si256(u, low), u_odd = _mm256_srli_epi16(u, 8);
    const __m256i s_even = _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8), s_odd = _mm256_srai_epi16(s, 8);
    const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(u_even, s_even), _mm256_madd_epi16(u_odd, s_odd));
    return _mm256_add_epi32(acc, sum);
}
// For codes below 128: a pair sum stays below 2 * 127 * 127 < 2^15, so vpmaddubsw cannot saturate.
inline i32v dot_u7s8(i32v acc, i32v u, i32v s) {
    const __m256i one = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(_mm256_maddubs_epi16(u.a, s.a), one)),
            _mm256_add_epi32(acc.b, _mm256_madd_epi16(_mm256_maddubs_epi16(u.b, s.b), one))};
}
inline i32v dot_u8s8(i32v acc, i32v u, i32v s) { return {dot_half(acc.a, u.a, s.a), dot_half(acc.b, u.b, s.b)}; }
inline f32v f_lookup16(f32v table, i32v index) {
    const auto pick = [&](__m256i i) {
        const __m256 low = _mm256_permutevar8x32_ps(table.a, i), high = _mm256_permutevar8x32_ps(table.b, i);
        return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
    };
    return {pick(index.a), pick(index.b)};
}

inline float f_sum(f32v x) {
    const __m256 s = _mm256_add_ps(x.a, x.b);
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
inline float f_max_lane(f32v x) {
    const __m256 s = _mm256_max_ps(x.a, x.b);
    const __m128 q = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps(d, d, 1)));
}
inline int32_t i_sum(i32v x) {
    const __m256i s = _mm256_add_epi32(x.a, x.b);
    __m128i q = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4e));
    q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0xb1));
    return _mm_cvtsi128_si32(q);
}

}  // namespace EXL_ISA
