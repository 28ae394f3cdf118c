// Sixteen 32-bit lanes in plain C++: the oracle of the other levels, and what runs on any processor.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"

namespace EXL_ISA {

struct f32v {
    float v[16];
};
struct i32v {
    int32_t v[16];
};

template <typename F> inline f32v f_each(F f) {
    f32v r;
    for (int i = 0; i < 16; ++i) r.v[i] = f(i);
    return r;
}
template <typename F> inline i32v i_each(F f) {
    i32v r;
    for (int i = 0; i < 16; ++i) r.v[i] = f(i);
    return r;
}
inline uint32_t u(int32_t x) { return static_cast<uint32_t>(x); }

inline f32v f_set(float x) {
    return f_each([&](int) { return x; });
}
inline f32v f_zero() { return f_set(0.0f); }
inline f32v f_load(const float* p) {
    return f_each([&](int i) { return p[i]; });
}
inline void f_store(float* p, f32v x) { std::memcpy(p, x.v, sizeof x.v); }
inline f32v f_add(f32v a, f32v b) {
    return f_each([&](int i) { return a.v[i] + b.v[i]; });
}
inline f32v f_sub(f32v a, f32v b) {
    return f_each([&](int i) { return a.v[i] - b.v[i]; });
}
inline f32v f_mul(f32v a, f32v b) {
    return f_each([&](int i) { return a.v[i] * b.v[i]; });
}
inline f32v f_div(f32v a, f32v b) {
    return f_each([&](int i) { return a.v[i] / b.v[i]; });
}
inline f32v f_fma(f32v a, f32v b, f32v c) {
    return f_each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline f32v f_max(f32v a, f32v b) {
    return f_each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline f32v f_min(f32v a, f32v b) {
    return f_each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline f32v f_abs(f32v a) {
    return f_each([&](int i) { return std::fabs(a.v[i]); });
}
inline f32v f_round(f32v a) {
    return f_each([&](int i) { return std::nearbyint(a.v[i]); });
}
inline f32v f_load_half(const uint16_t* p) {
    return f_each([&](int i) { return exl::half_to_float(p[i]); });
}
inline void f_store_half(uint16_t* p, f32v x) {
    for (int i = 0; i < 16; ++i) p[i] = exl::float_to_half(x.v[i]);
}
inline f32v f_load_bf16(const uint16_t* p) {
    return f_each([&](int i) { return exl::bf16_to_float(p[i]); });
}
inline f32v f_bits(i32v x) {
    f32v r;
    std::memcpy(r.v, x.v, sizeof r.v);
    return r;
}
inline i32v i_bits(f32v x) {
    i32v r;
    std::memcpy(r.v, x.v, sizeof r.v);
    return r;
}
inline f32v f_select(uint16_t keep, f32v x, f32v other) {
    return f_each([&](int i) { return (keep >> i) & 1 ? x.v[i] : other.v[i]; });
}

inline i32v i_set(int32_t x) {
    return i_each([&](int) { return x; });
}
inline i32v i_zero() { return i_set(0); }
inline i32v i_load(const void* p) {
    i32v r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
inline void i_store(void* p, i32v x) { std::memcpy(p, x.v, sizeof x.v); }
inline i32v i_and(i32v a, i32v b) {
    return i_each([&](int i) { return a.v[i] & b.v[i]; });
}
inline i32v i_or(i32v a, i32v b) {
    return i_each([&](int i) { return a.v[i] | b.v[i]; });
}
inline i32v i_add(i32v a, i32v b) {
    return i_each([&](int i) { return int32_t(u(a.v[i]) + u(b.v[i])); });
}
inline i32v i_sub(i32v a, i32v b) {
    return i_each([&](int i) { return int32_t(u(a.v[i]) - u(b.v[i])); });
}
inline i32v i_mul(i32v a, i32v b) {
    return i_each([&](int i) { return int32_t(u(a.v[i]) * u(b.v[i])); });
}
template <int n> inline i32v i_shl(i32v a) {
    return i_each([&](int i) { return int32_t(u(a.v[i]) << n); });
}
template <int n> inline i32v i_shr(i32v a) {
    return i_each([&](int i) { return int32_t(u(a.v[i]) >> n); });
}
template <int n> inline i32v i_shr_signed(i32v a) {
    return i_each([&](int i) { return a.v[i] >> n; });
}
inline i32v i_shr_each(i32v a, i32v n) {
    return i_each([&](int i) { return int32_t(u(a.v[i]) >> n.v[i]); });
}
inline f32v i_to_f(i32v a) {
    return f_each([&](int i) { return static_cast<float>(a.v[i]); });
}
inline i32v f_to_i(f32v a) {
    return i_each([&](int i) { return static_cast<int32_t>(std::nearbyint(a.v[i])); });
}
inline i32v i_load_u8(const uint8_t* p) {
    return i_each([&](int i) { return p[i]; });
}
inline i32v i_load_s8(const int8_t* p) {
    return i_each([&](int i) { return p[i]; });
}
inline void i_store_s8(int8_t* p, i32v x) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(x.v[i]);
}
inline i32v i8_set(int8_t x) { return i_set(static_cast<int32_t>(uint8_t(x) * 0x01010101u)); }
inline int32_t byte_of(int32_t x, int j) { return (u(x) >> (8 * j)) & 255; }
inline i32v i8_sub(i32v a, i32v b) {
    return i_each([&](int i) {
        uint32_t r = 0;
        for (int j = 0; j < 4; ++j) r |= (u(byte_of(a.v[i], j) - byte_of(b.v[i], j)) & 255u) << (8 * j);
        return static_cast<int32_t>(r);
    });
}
inline i32v dot_u8s8(i32v acc, i32v x, i32v s) {
    return i_each([&](int i) {
        int32_t sum = acc.v[i];
        for (int j = 0; j < 4; ++j) sum += byte_of(x.v[i], j) * static_cast<int8_t>(byte_of(s.v[i], j));
        return sum;
    });
}
inline i32v dot_u7s8(i32v acc, i32v x, i32v s) { return dot_u8s8(acc, x, s); }
inline f32v f_lookup16(f32v table, i32v index) {
    return f_each([&](int i) { return table.v[index.v[i] & 15]; });
}

inline float f_sum(f32v x) {
    for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; ++i) x.v[i] += x.v[i + step];
    return x.v[0];
}
inline float f_max_lane(f32v x) {
    float best = x.v[0];
    for (int i = 1; i < 16; ++i) best = x.v[i] > best ? x.v[i] : best;
    return best;
}
inline int32_t i_sum(i32v x) {
    uint32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += u(x.v[i]);
    return static_cast<int32_t>(sum);
}

}  // namespace EXL_ISA
