// The arithmetic of attention on one page: scores of queries against keys, values weighted with probabilities.
//
//   scores   fp16 keys: fp32 multiply-adds.   packed keys: the query as 15-bit integers per 32 features (two int8 rows),
//            exact integer dot products with the codes, one multiply-add per 32 features.
//   values   fp16: fp32 multiply-adds.        packed: the scale of the token goes into its probability.
#pragma once

#include "kv_cache.h"
#include "unpack.h"

namespace EXL_ISA {

struct PackedQuery {  // of one 32-feature group
    int8_t high[32], low[32];
    float scale;  // of the 15-bit integer, times 1 / (2 m)
    int32_t sum;  // of the 15-bit integers
};

inline void pack_query(const float* x, int key_bits, PackedQuery& out) {
    float peak = 0.0f;
    for (int i = 0; i < 32; ++i) peak = __builtin_fabsf(x[i]) > peak ? __builtin_fabsf(x[i]) : peak;
    const float inverse = peak > 0x1p-100f ? 16256.0f / peak : 0.0f;  // 127 * 128: the high part stays within int8
    out.sum = 0;
    for (int i = 0; i < 32; ++i) {
        const int q = int(__builtin_rintf(x[i] * inverse));
        const int high = (q + 64) >> 7;
        out.high[i] = int8_t(high);
        out.low[i] = int8_t(q - 128 * high);
        out.sum += q;
    }
    out.scale = peak / 16256.0f / float(1 << key_bits);
}

// What will be read next, pulled into the second-level cache while something else is computed: the values of a page
// during its scores, the keys of the next page during its values. A line a step keeps the loads evenly spread.
struct Ahead {
    const uint8_t* next = nullptr;
    const uint8_t* end = nullptr;
    void line() {
        if (next < end) __builtin_prefetch(next, 0, 2);
        next += 64;
    }
};

// 16 scores of `n` queries against one block of 16 tokens.
template <int n> void scores_half(const uint16_t* keys, int d, const float* const* q, float* const* out, Ahead& ahead) {
    f32v even[n], odd[n];
    for (int i = 0; i < n; ++i) even[i] = odd[i] = f_zero();
    for (int f = 0; f < d; f += 2) {
        ahead.line();
        const f32v k0 = f_load_half(keys + 16 * f), k1 = f_load_half(keys + 16 * f + 16);
        for (int i = 0; i < n; ++i) even[i] = f_fma(k0, f_set(q[i][f]), even[i]);
        for (int i = 0; i < n; ++i) odd[i] = f_fma(k1, f_set(q[i][f + 1]), odd[i]);
    }
    for (int i = 0; i < n; ++i) f_store(out[i], f_add(even[i], odd[i]));
}

template <int bits, int n> void scores_packed(const uint8_t* codes, const uint16_t* scales, int groups,
                                              const PackedQuery* const* q, float* const* out, Ahead& ahead) {
    f32v score[n];
    for (int i = 0; i < n; ++i) score[i] = f_zero();
    for (int g = 0; g < groups; ++g) {
        i32v high[n], low[n];
        for (int i = 0; i < n; ++i) high[i] = low[i] = i_zero();
#pragma GCC unroll 8
        for (int c = 0; c < 8; ++c) {
            if (c < bits) ahead.line();
            const i32v u = unpack<bits>(codes + 64 * bits * g, c);
            for (int i = 0; i < n; ++i) {
                int32_t a, b;
                __builtin_memcpy(&a, q[i][g].high + 4 * c, 4);
                __builtin_memcpy(&b, q[i][g].low + 4 * c, 4);
                high[i] = bits == 8 ? dot_u8s8(high[i], u, i_set(a)) : dot_u7s8(high[i], u, i_set(a));
                low[i] = bits == 8 ? dot_u8s8(low[i], u, i_set(b)) : dot_u7s8(low[i], u, i_set(b));
            }
        }
        const f32v scale = f_load_half(scales + 16 * g);
        for (int i = 0; i < n; ++i) {
            // sum q (code - m + 1/2) = (2 dot - (2 m - 1) sum) / 2
            const i32v dot = i_add(i_shl<7>(high[i]), low[i]);
            const i32v centred = i_sub(i_shl<1>(dot), i_set(((1 << bits) - 1) * q[i][g].sum));
            score[i] = f_fma(i_to_f(centred), f_mul(scale, f_set(q[i][g].scale)), score[i]);
        }
    }
    for (int i = 0; i < n; ++i) f_store(out[i], score[i]);
}

// out[i] (16 v features from `f`) = sum over tokens [t0, t1) of p[i][t] * value[t].
template <int n, int v> void weigh_half(const uint16_t* values, int d, int f, int t0, int t1, const float* const* p,
                                        float* const* out, Ahead& ahead) {
    f32v sum[n][v];
    for (int i = 0; i < n; ++i)
        for (int j = 0; j < v; ++j) sum[i][j] = f_zero();
    for (int t = t0; t < t1; ++t) {
        f32v value[v];
        for (int j = t * v % 2; j < v; j += 2) ahead.line();
        for (int j = 0; j < v; ++j) value[j] = f_load_half(values + int64_t(t) * d + f + 16 * j);
        for (int i = 0; i < n; ++i) {
            const f32v weight = f_set(p[i][t]);
            for (int j = 0; j < v; ++j) sum[i][j] = f_fma(value[j], weight, sum[i][j]);
        }
    }
    for (int i = 0; i < n; ++i)
        for (int j = 0; j < v; ++j) f_store(out[i] + f + 16 * j, sum[i][j]);
}

template <int bits, int n>
void weigh_packed(const uint8_t* codes, int g, int t0, int t1, const float* const* p, float* const* out, Ahead& ahead) {
    constexpr float middle = float(1 << (bits - 1)) - 0.5f;
    alignas(64) float table_values[16];
    alignas(64) int32_t lanes[16];
    for (int i = 0; i < 16; ++i) table_values[i] = float(i) - middle, lanes[i] = i;
    const f32v table = f_load(table_values), shift = f_set(-middle);
    const i32v lane = i_load(lanes);
    f32v a[n], b[n];
    for (int i = 0; i < n; ++i) a[i] = b[i] = f_zero();
    const uint8_t* group = codes + int64_t(g) * page_size * 4 * bits;
    for (int t = t0; t < t1; ++t) {
        if (t * bits % 16 < bits) ahead.line();
        f32v x, y;
        if constexpr (bits == 4) {
            const i32v both = i_load_u8(group + 16 * t);
            x = f_lookup16(table, both);
            y = f_lookup16(table, i_shr<4>(both));
        } else {
            i32v cx, cy;
            get_value_codes<bits>(group + int64_t(t) * 4 * bits, lane, cx, cy);
            x = f_add(i_to_f(cx), shift);
            y = f_add(i_to_f(cy), shift);
        }
        for (int i = 0; i < n; ++i) {
            const f32v weight = f_set(p[i][t]);
            a[i] = f_fma(x, weight, a[i]);
            b[i] = f_fma(y, weight, b[i]);
        }
    }
    for (int i = 0; i < n; ++i) {
        f_store(out[i] + 32 * g, a[i]);
        f_store(out[i] + 32 * g + 16, b[i]);
    }
}

// Calls f(Constant<n>, index of the first query) until all queries are served, `most` at a time at most.
template <int most, typename F> inline void by_queries(int count, F f) {
    int done = 0;
    for (; count - done >= most; done += most) f(Constant<most>{}, done);
    if constexpr (most > 4) {
        if (count - done == 7) return f(Constant<7>{}, done);
        if (count - done == 6) return f(Constant<6>{}, done);
        if (count - done == 5) return f(Constant<5>{}, done);
        if (count - done == 4) return f(Constant<4>{}, done);
    }
    if (count - done == 3) f(Constant<3>{}, done);
    if (count - done == 2) f(Constant<2>{}, done);
    if (count - done == 1) f(Constant<1>{}, done);
}

// Queries that share what is loaded: as many as the registers hold sums for. A half takes as long to become a float as a
// multiply-add, so more queries pay there.
constexpr int half_queries = EXL_LEVEL >= 2 ? 8 : 4;
constexpr int packed_queries = 4;

template <typename F> inline void by_bits(int bits, F f) {
    switch (bits) {
        case 2: return f(Constant<2>{});
        case 3: return f(Constant<3>{});
        case 4: return f(Constant<4>{});
        case 5: return f(Constant<5>{});
        case 6: return f(Constant<6>{});
        case 7: return f(Constant<7>{});
        default: return f(Constant<8>{});
    }
}

}  // namespace EXL_ISA
