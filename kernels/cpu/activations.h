// Rows of activations as the matrix kernels read them: integers of 12 bits per 32 columns, bf16, or fp32.
//
// One record per row, made from that row alone:
//   int8:  [ codes 2 K ][ scale K/32 f32 ][ sum K/32 i32 ][ scale*sum K/32 f32 ][ sum16 K/16 i32 ][ scale*sum16 K/16 f32 ]
//          [ i32: any low part is not zero ]
//   bf16:  [ K uint16 ]      f32:  [ K float ]
// An integer is 16 * high + low, -127..127 and -8..7. Codes are [ high 16 ][ low 16 ] for each 16 columns, so that 64 bytes
// are 32 columns of an A tile. A row that 8 bits describe well enough has no low parts.
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
    float* scale(int k) const { return reinterpret_cast<float*>(base + 2 * k); }
    int32_t* sum(int k) const { return reinterpret_cast<int32_t*>(base + 2 * k) + k / 32; }
    float* scaled_sum(int k) const { return scale(k) + 2 * (k / 32); }
    int32_t* sum16(int k) const { return sum(k) + 2 * (k / 32); }
    float* scaled_sum16(int k) const { return scale(k) + 5 * (k / 32); }
    int32_t& has_low(int k) const { return sum(k)[6 * (k / 32)]; }
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
    const int64_t bytes = type == ActivationType::int8 ? 2 * k + int64_t(k / 32) * 28 + 4
                                                       : int64_t(k) * (type == ActivationType::bf16 ? 2 : 4);
    return ((bytes + 63) / 64 | 1) * 64;
}

constexpr float largest_code = 127 * 16;

// Integers of 16 columns, rounded to 8 bits where `keep_low` is false, and their parts.
struct Codes16 {
    i32v code, high, low;

    Codes16(f32v x, f32v inverse, bool keep_low) {
        code = f_to_i(f_mul(x, inverse));
        high = i_shr_signed<4>(i_add(code, i_set(8)));
        low = i_sub(code, i_shl<4>(high));
        if (!keep_low) code = i_shl<4>(high), low = i_zero();
    }
    void store(int8_t* out) const {
        i_store_s8(out, high);
        i_store_s8(out + 16, low);
    }
};

// Codes = round(x * 2032 / absmax) per 32 columns, with or without low parts. Returns the squared low parts relative to the
// row: what it would lose without them.
inline float quantize_row(const float* x, int k, Record out, bool keep_low) {
    f32v lost = f_zero(), size = f_zero();
    for (int g = 0; g < k / 32; ++g) {
        const f32v a = f_load(x + 32 * g), b = f_load(x + 32 * g + 16);
        const float peak = f_max_lane(f_max(f_abs(a), f_abs(b)));
        const bool empty = peak < 0x1p-90f;  // products of scales stay normal numbers
        const float scale = empty ? 0.0f : peak / largest_code;
        const f32v inverse = f_set(empty ? 0.0f : largest_code / peak), s = f_set(scale);
        const Codes16 ca(a, inverse, keep_low), cb(b, inverse, keep_low);
        ca.store(out.codes() + 64 * g);
        cb.store(out.codes() + 64 * g + 32);
        const int32_t sum_a = i_sum(ca.code), sum_b = i_sum(cb.code);
        out.scale(k)[g] = scale;
        out.sum(k)[g] = sum_a + sum_b;
        out.scaled_sum(k)[g] = scale * float(sum_a + sum_b);
        out.sum16(k)[2 * g] = sum_a;
        out.sum16(k)[2 * g + 1] = sum_b;
        out.scaled_sum16(k)[2 * g] = scale * float(sum_a);
        out.scaled_sum16(k)[2 * g + 1] = scale * float(sum_b);
        const f32v la = f_mul(i_to_f(ca.low), s), lb = f_mul(i_to_f(cb.low), s);
        lost = f_fma(la, la, f_fma(lb, lb, lost));
        size = f_fma(a, a, f_fma(b, b, size));
    }
    out.has_low(k) = keep_low;
    const float whole = f_sum(size);
    return whole > 0.0f ? f_sum(lost) / whole : 0.0f;
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

// Fills the record of row r. `line` holds k floats and is overwritten.
inline void prepare_row(const LinearArgs& args, const float* x, ActivationType type, const Rows& rows, int r,
                        float* line) {
    normalize_row(x, args.norm, args.eps, args.cols, rows.k, line);
    if (type == ActivationType::int8) {
        const bool may_keep_low = args.residual_above < __builtin_inff();
        const float lost = quantize_row(line, rows.k, rows[r], may_keep_low);
        if (may_keep_low && lost < args.residual_above) quantize_row(line, rows.k, rows[r], false);
#if EXL_LEVEL >= 3
    } else if (type == ActivationType::bf16) {
        for (int i = 0; i < rows.k; i += 16) f_store_bf16(rows[r].bf16() + i, f_load(line + i));
#endif
    } else {
        for (int i = 0; i < rows.k; i += 16) f_store(rows[r].f32() + i, f_load(line + i));
    }
}

}  // namespace EXL_ISA
