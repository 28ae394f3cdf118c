// Rows of activations as the matrix kernels read them: int8 codes per 32 columns, bf16, or fp32.
//
// One record per row, made from that row alone:
//   int8:  [ codes K ][ scale K/32 f32 ][ sum K/32 i32 ][ scale*sum K/32 f32 ][ sum16 K/16 i32 ][ scale*sum16 K/16 f32 ]
//   bf16:  [ K uint16 ]      f32:  [ K float ]
// The rounding error of an int8 row may be a record of its own, further down: 15 bits in all.
#pragma once

#include "exl_cpu.h"
#include "half.h"
#include "simd.h"

namespace EXL_ISA {

using namespace exl::cpu;

enum class ActivationType { int8, bf16, f32 };

struct Record {
    uint8_t* base;

    int8_t* codes() const { return reinterpret_cast<int8_t*>(base); }
    float* scale(int k) const { return reinterpret_cast<float*>(base + k); }
    int32_t* sum(int k) const { return reinterpret_cast<int32_t*>(base + k) + k / 32; }
    float* scaled_sum(int k) const { return reinterpret_cast<float*>(base + k) + 2 * (k / 32); }
    int32_t* sum16(int k) const { return reinterpret_cast<int32_t*>(base + k) + 3 * (k / 32); }
    float* scaled_sum16(int k) const { return reinterpret_cast<float*>(base + k) + 5 * (k / 32); }
    uint16_t* bf16() const { return reinterpret_cast<uint16_t*>(base); }
    float* f32() const { return reinterpret_cast<float*>(base); }
};

struct Rows {
    uint8_t* base;
    int64_t stride;
    int k;  // padded columns

    Record operator[](int64_t row) const { return {base + row * stride}; }
};

// An odd number of cache lines, so that 16 rows of a tile do not fall into one cache set.
inline int64_t record_bytes(ActivationType type, int k) {
    const int64_t bytes =
        type == ActivationType::int8 ? k + int64_t(k / 32) * 28 : int64_t(k) * (type == ActivationType::bf16 ? 2 : 4);
    return ((bytes + 63) / 64 | 1) * 64;
}

// Codes = round(x * 127 / absmax) per 32 columns; returns nothing else than the record. With `residual`, x becomes the error.
inline void quantize_row(float* x, int k, Record out, bool keep_error) {
    for (int g = 0; g < k / 32; ++g) {
        float* p = x + 32 * g;
        const f32v a = f_load(p), b = f_load(p + 16);
        const float peak = f_max_lane(f_max(f_abs(a), f_abs(b)));
        const float scale = peak / 127.0f;
        const f32v inverse = f_set(peak > 0x1p-120f ? 127.0f / peak : 0.0f);
        const i32v qa = f_to_i(f_mul(a, inverse)), qb = f_to_i(f_mul(b, inverse));
        i_store_s8(out.codes() + 32 * g, qa);
        i_store_s8(out.codes() + 32 * g + 16, qb);
        const int32_t sum_a = i_sum(qa), sum_b = i_sum(qb);
        out.scale(k)[g] = scale;
        out.sum(k)[g] = sum_a + sum_b;
        out.scaled_sum(k)[g] = scale * float(sum_a + sum_b);
        out.sum16(k)[2 * g] = sum_a;
        out.sum16(k)[2 * g + 1] = sum_b;
        out.scaled_sum16(k)[2 * g] = scale * float(sum_a);
        out.scaled_sum16(k)[2 * g + 1] = scale * float(sum_b);
        if (keep_error) {
            const f32v minus = f_set(-scale);
            f_store(p, f_fma(i_to_f(qa), minus, a));
            f_store(p + 16, f_fma(i_to_f(qb), minus, b));
        }
    }
}

inline float sum_of_squares(const float* x, int n) {
    f32v s0 = f_zero(), s1 = f_zero();
    int i = 0;
    for (; i + 32 <= n; i += 32) {
        const f32v a = f_load(x + i), b = f_load(x + i + 16);
        s0 = f_fma(a, a, s0);
        s1 = f_fma(b, b, s1);
    }
    float sum = f_sum(f_add(s0, s1));
    for (; i < n; ++i) sum += x[i] * x[i];
    return sum;
}

// out = x / sqrt(mean(x^2) + eps) * weight, or a copy where weight is null; columns n..padded are zero.
inline void normalize_row(const float* x, const float* weight, float eps, int n, int padded, float* out) {
    const float inverse = weight ? 1.0f / __builtin_sqrtf(sum_of_squares(x, n) / float(n) + eps) : 1.0f;
    const f32v factor = f_set(inverse);
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const f32v v = f_load(x + i);
        f_store(out + i, weight ? f_mul(f_mul(v, factor), f_load(weight + i)) : v);
    }
    for (; i < n; ++i) out[i] = weight ? x[i] * inverse * weight[i] : x[i];
    for (; i < padded; ++i) out[i] = 0.0f;
}

// Fills the record of row r. int8: returns the squared rounding error relative to the row, where `residual_above` asks for it.
// `line` holds k floats and is overwritten.
inline float prepare_row(const LinearArgs& args, const float* x, ActivationType type, const Rows& rows, int r,
                         float* line) {
    normalize_row(x, args.norm, args.eps, args.cols, rows.k, line);
    if (type == ActivationType::int8) {
        const bool compare = args.residual_above > 0.0f && args.residual_above < __builtin_inff();
        const float size = compare ? sum_of_squares(line, rows.k) : 0.0f;
        quantize_row(line, rows.k, rows[r], compare);
        return size > 0.0f ? sum_of_squares(line, rows.k) / size : 0.0f;
    }
    if (type == ActivationType::bf16) {
        for (int i = 0; i < rows.k; ++i) rows[r].bf16()[i] = exl::float_to_bf16(line[i]);
    } else {
        for (int i = 0; i < rows.k; i += 16) f_store(rows[r].f32() + i, f_load(line + i));
    }
    return 0.0f;
}

// The record of a row's rounding error.
inline void prepare_residual(const LinearArgs& args, const float* x, const Rows& rows, int r, float* line) {
    normalize_row(x, args.norm, args.eps, args.cols, rows.k, line);
    quantize_row(line, rows.k, rows[r], true);
    quantize_row(line, rows.k, rows[r], false);
}

}  // namespace EXL_ISA
