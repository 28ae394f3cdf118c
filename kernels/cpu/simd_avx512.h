// Sixteen 32-bit lanes on AVX-512 (F, BW, VL, DQ, VNNI).
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace EXL_ISA {

using f32v = __m512;   // 16 floats
using i32v = __m512i;  // 16 int32, or 64 bytes

inline f32v f_zero() { return _mm512_setzero_ps(); }
inline f32v f_set(float x) { return _mm512_set1_ps(x); }
inline f32v f_load(const float* p) { return _mm512_loadu_ps(p); }
inline void f_store(float* p, f32v x) { _mm512_storeu_ps(p, x); }
inline f32v f_add(f32v a, f32v b) { return _mm512_add_ps(a, b); }
inline f32v f_sub(f32v a, f32v b) { return _mm512_sub_ps(a, b); }
inline f32v f_mul(f32v a, f32v b) { return _mm512_mul_ps(a, b); }
inline f32v f_div(f32v a, f32v b) { return _mm512_div_ps(a, b); }
inline f32v f_fma(f32v a, f32v b, f32v c) { return _mm512_fmadd_ps(a, b, c); }
inline f32v f_max(f32v a, f32v b) { return _mm512_max_ps(a, b); }
inline f32v f_min(f32v a, f32v b) { return _mm512_min_ps(a, b); }
inline f32v f_abs(f32v a) { return _mm512_abs_ps(a); }
inline f32v f_round(f32v a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline f32v f_load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void f_store_half(uint16_t* p, f32v x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline f32v f_load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
#if EXL_LEVEL >= 3
inline void f_store_bf16(uint16_t* p, f32v x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x));
}
#endif
inline f32v f_bits(i32v x) { return _mm512_castsi512_ps(x); }
inline i32v i_bits(f32v x) { return _mm512_castps_si512(x); }
// Lanes whose bit in `keep` is zero become `other`.
inline f32v f_select(uint16_t keep, f32v x, f32v other) { return _mm512_mask_blend_ps(keep, other, x); }

inline i32v i_zero() { return _mm512_setzero_si512(); }
inline i32v i_set(int32_t x) { return _mm512_set1_epi32(x); }
inline i32v i_load(const void* p) { return _mm512_loadu_si512(p); }
inline void i_store(void* p, i32v x) { _mm512_storeu_si512(p, x); }
inline i32v i_and(i32v a, i32v b) { return _mm512_and_si512(a, b); }
inline i32v i_or(i32v a, i32v b) { return _mm512_or_si512(a, b); }
inline i32v i_add(i32v a, i32v b) { return _mm512_add_epi32(a, b); }
inline i32v i_sub(i32v a, i32v b) { return _mm512_sub_epi32(a, b); }
inline i32v i_mul(i32v a, i32v b) { return _mm512_mullo_epi32(a, b); }
template <int n> inline i32v i_shl(i32v a) { return _mm512_slli_epi32(a, n); }
template <int n> inline i32v i_shr(i32v a) { return _mm512_srli_epi32(a, n); }
template <int n> inline i32v i_shr_signed(i32v a) { return _mm512_srai_epi32(a, n); }
// Right shift of lane i by amounts[i] bits.
inline i32v i_shr_each(i32v a, i32v amounts) { return _mm512_srlv_epi32(a, amounts); }
inline f32v i_to_f(i32v a) { return _mm512_cvtepi32_ps(a); }
inline i32v f_to_i(f32v a) { return _mm512_cvtps_epi32(a); }
inline i32v i_load_u8(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline i32v i_load_s8(const int8_t* p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void i_store_s8(int8_t* p, i32v x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x)); }
inline i32v i8_sub(i32v a, i32v b) { return _mm512_sub_epi8(a, b); }
inline i32v i8_set(int8_t x) { return _mm512_set1_epi8(x); }
// acc[i] += sum of 4 products of unsigned bytes of u and signed bytes of s.
inline i32v dot_u8s8(i32v acc, i32v u, i32v s) { return _mm512_dpbusd_epi32(acc, u, s); }
inline i32v dot_u7s8(i32v acc, i32v u, i32v s) { return dot_u8s8(acc, u, s); }
// table[index & 15], lane by lane.
inline f32v f_lookup16(f32v table, i32v index) { return _mm512_permutexvar_ps(index, table); }

inline float f_sum(f32v x) { return _mm512_reduce_add_ps(x); }
inline float f_max_lane(f32v x) { return _mm512_reduce_max_ps(x); }
inline int32_t i_sum(i32v x) { return _mm512_reduce_add_epi32(x); }

}  // namespace EXL_ISA
