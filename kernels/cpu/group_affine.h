// y (M, 16) = activations (M, K) x one block of 16 weight rows, for codes with a scale and an offset per group.
//
//   y[m] += sum over groups g of  a_scale[m, g] * (scale[g] * dot(code, a) + offset[g] * sum(a))
//
// The dot product is exact in int32. A constant zero point is subtracted there: dot(code - z, a) = dot(code, a) - z * sum(a).
// Floats are added group by group in ascending order with fused multiply-adds, so one row gives the same bits in
// every kernel below whatever M is. All integers of a row block stand together, then all scales:
//
//   symmetric      per 32: half s[16]
//   affine         per 32: half s[16], half o[16]
//   super32        per 256: half d[16], half dmin[16], 8 x { u8 scale[16], u8 min[16] }
//   super16        per 256: half d[16], half dmin[16], 16 x { u8 (min << 4 | scale)[16] }
//   super16_signed per 256: half d[16], 16 x { int8 scale[16] }
//
// Oracle: the dequantized matrix in float64 (tests/ops). Bound: memory for few rows, VNNI and flush for many.
#pragma once

#include "activations.h"
#include "unpack.h"

namespace EXL_ISA {

template <Scheme s> struct SchemeConstant {
    static constexpr Scheme value = s;
};

// load(block scales, group index, s, o): 16 scales and offsets of a group; `size` columns a group.
template <Scheme scheme> struct Scales;

template <> struct Scales<Scheme::symmetric> {
    static constexpr int size = 32;
    static constexpr bool has_offset = false;
    static void load(const uint8_t* p, int g, f32v& s, f32v&) {
        s = f_load_half(reinterpret_cast<const uint16_t*>(p) + 16 * g);
    }
};
template <> struct Scales<Scheme::affine> {
    static constexpr int size = 32;
    static constexpr bool has_offset = true;
    static void load(const uint8_t* p, int g, f32v& s, f32v& o) {
        const uint16_t* h = reinterpret_cast<const uint16_t*>(p) + 32 * g;
        s = f_load_half(h);
        o = f_load_half(h + 16);
    }
};
template <> struct Scales<Scheme::super32> {
    static constexpr int size = 32;
    static constexpr bool has_offset = true;
    static constexpr int super_bytes = 64 + 8 * 32;
    static void load(const uint8_t* p, int g, f32v& s, f32v& o) {
        const uint8_t* super = p + (g / 8) * super_bytes;
        const uint8_t* small = super + 64 + (g % 8) * 32;
        s = f_mul(f_load_half(reinterpret_cast<const uint16_t*>(super)), i_to_f(i_load_u8(small)));
        const f32v m = f_mul(f_load_half(reinterpret_cast<const uint16_t*>(super) + 16), i_to_f(i_load_u8(small + 16)));
        o = f_sub(f_zero(), m);
    }
};
template <> struct Scales<Scheme::super16> {
    static constexpr int size = 16;
    static constexpr bool has_offset = true;
    static constexpr int super_bytes = 64 + 16 * 16;
    static void load(const uint8_t* p, int g, f32v& s, f32v& o) {
        const uint8_t* super = p + (g / 16) * super_bytes;
        const i32v both = i_load_u8(super + 64 + (g % 16) * 16);
        s = f_mul(f_load_half(reinterpret_cast<const uint16_t*>(super)), i_to_f(i_and(both, i_set(15))));
        const f32v m = f_mul(f_load_half(reinterpret_cast<const uint16_t*>(super) + 16), i_to_f(i_shr<4>(both)));
        o = f_sub(f_zero(), m);
    }
};
template <> struct Scales<Scheme::super16_signed> {
    static constexpr int size = 16;
    static constexpr bool has_offset = false;
    static constexpr int super_bytes = 32 + 16 * 16;
    static void load(const uint8_t* p, int g, f32v& s, f32v&) {
        const uint8_t* super = p + (g / 16) * super_bytes;
        const i32v small = i_load_s8(reinterpret_cast<const int8_t*>(super) + 32 + (g % 16) * 16);
        s = f_mul(f_load_half(reinterpret_cast<const uint16_t*>(super)), i_to_f(small));
    }
};

// One group of one row: the only place where integers become floats.
template <Scheme scheme> inline f32v flush(f32v y, i32v dot, f32v s, f32v o, float a_scale, float a_scaled_sum) {
    y = f_fma(i_to_f(dot), f_mul(s, f_set(a_scale)), y);
    if constexpr (Scales<scheme>::has_offset) y = f_fma(o, f_set(a_scaled_sum), y);
    return y;
}

template <int bits> inline i32v dot4(i32v acc, i32v codes, const int8_t* a) {
    int32_t four;
    __builtin_memcpy(&four, a, 4);
    return bits == 8 ? dot_u8s8(acc, codes, i_set(four)) : dot_u7s8(acc, codes, i_set(four));
}

constexpr int prefetch_distance = 4096;

// Where four columns lie in the codes of a record; their low parts are 16 bytes further.
constexpr int code_offset(int column4) { return 32 * (column4 / 4) + 4 * (column4 % 4); }

// M rows times B blocks of one format at once: codes are unpacked once for all rows, and memory is read faster as two
// streams than as one. Without `low` no row may have low parts; both kinds give the same bits for a row that has none: 16 is
// a power of two.
template <int bits, Scheme scheme, int M, bool low, int B>
void block_rows(const Weight& w, const uint8_t* const* blocks, const Rows& rows, int first, float* const* y) {
    using S = Scales<scheme>;
    constexpr int chunks = S::size / 4;  // dot products of 4 columns per group
    constexpr int per_32 = 32 / S::size;
    const int k = rows.k;
    const int64_t scale_stride = (w.block_bytes - w.scales_offset) / (k / 32);
    Record row[M];
    f32v sum[B][M];
    for (int m = 0; m < M; ++m) {
        row[m] = rows[first + m];
        for (int b = 0; b < B; ++b) sum[b][m] = f_zero();
    }
    for (int g32 = 0; g32 < k / 32; ++g32)
        for (int part = 0; part < per_32; ++part)
#pragma GCC unroll 2
            for (int b = 0; b < B; ++b) {
                const int g = g32 * per_32 + part;
                const uint8_t* codes = blocks[b] + int64_t(g32) * 64 * bits;
                const uint8_t* scales = blocks[b] + w.scales_offset;
                if (part == 0) {
                    for (int line = 0; line < bits; ++line) __builtin_prefetch(codes + prefetch_distance + 64 * line);
                    // Scales are a second, short stream that starts anew in every block: too short for the processor to notice.
                    __builtin_prefetch(scales + B * w.block_bytes + g32 * scale_stride);
                }
                i32v high[M], rest[M];
                for (int m = 0; m < M; ++m) {
                    const int32_t* sums = S::size == 32 ? row[m].sum(k) : row[m].sum16(k);
                    const i32v zero = S::has_offset ? i_zero() : i_set(-w.zero * (low ? sums[g] : sums[g] >> 4));
                    high[m] = low ? i_zero() : zero;
                    rest[m] = zero;
                }
#pragma GCC unroll 8
                for (int c = 0; c < chunks; ++c) {
                    const i32v u = unpack<bits>(codes, part * chunks + c);
                    for (int m = 0; m < M; ++m) {
                        const int8_t* a = row[m].codes() + 64 * g32 + code_offset(part * chunks + c);
                        high[m] = dot4<bits>(high[m], u, a);
                        if constexpr (low) rest[m] = dot4<bits>(rest[m], u, a + 16);
                    }
                }
                f32v s = f_zero(), o = f_zero();
                S::load(scales, g, s, o);
                if constexpr (!low) s = f_mul(s, f_set(16.0f));
                for (int m = 0; m < M; ++m) {
                    const float* scaled = S::size == 32 ? row[m].scaled_sum(k) : row[m].scaled_sum16(k);
                    const i32v dot = low ? i_add(i_shl<4>(high[m]), rest[m]) : high[m];
                    sum[b][m] =
                        flush<scheme>(sum[b][m], dot, s, o, row[m].scale(k)[g32], S::has_offset ? scaled[g] : 0.0f);
                }
            }
    for (int b = 0; b < B; ++b)
        for (int m = 0; m < M; ++m) f_store(y[b] + 16 * m, sum[b][m]);
}

inline bool any_low(const Rows& rows, int first, int count) {
    int32_t any = 0;
    for (int m = 0; m < count; ++m) any |= rows[first + m].has_low(rows.k);
    return any != 0;
}

// Rows at once: what the registers hold sums and dot products for. The generic level has none to speak of, and there each
// further size only takes the compiler long.
constexpr int most_rows = EXL_LEVEL >= 2 ? 12 : EXL_LEVEL == 1 ? 8 : 2;
constexpr int most_blocks = EXL_LEVEL >= 1 ? 2 : 1;

// All rows [first, first + count) of B blocks of one format, y[b] (count, 16).
template <int bits, Scheme scheme, int B> void block_multiply(const Weight& w, const uint8_t* const* blocks,
                                                              const Rows& rows, int first, int count, float* const* y) {
    int done = 0;
    // M rows of `together` blocks.
    const auto step = [&](auto size, auto low, auto together) {
        constexpr int M = decltype(size)::value, T = decltype(together)::value;
        for (int b = 0; b < B; b += T) {
            float* out[T];
            for (int i = 0; i < T; ++i) out[i] = y[b + i] + 16 * done;
            block_rows<bits, scheme, M, low.value != 0, T>(w, blocks + b, rows, first + done, out);
        }
        done += M;
    };
    const auto next = [&](auto size, auto together) {
        const bool low = any_low(rows, first + done, size.value);
        low ? step(size, Constant<1>{}, together) : step(size, Constant<0>{}, together);
    };
    constexpr Constant<std::min(B, most_blocks)> together;
    if constexpr (most_rows >= 8)
        while (count - done >= 8) {
            if (count - done >= most_rows && !any_low(rows, first + done, most_rows))
                step(Constant<most_rows>{}, Constant<0>{}, Constant<1>{});
            else
                next(Constant<8>{}, Constant<1>{});
        }
    if constexpr (most_rows >= 4)
        while (count - done >= 4) next(Constant<4>{}, together);
    while (count - done >= 2) next(Constant<2>{}, together);
    while (count - done >= 1) next(Constant<1>{}, together);
}

// Calls f(bits constant, scheme constant) for the combination of w; f must return the same type for all.
template <typename F> auto dispatch_group_affine(const Weight& w, F f) {
    const auto by_bits = [&](auto scheme) {
        switch (w.bits) {
            case 2: return f(Constant<2>{}, scheme);
            case 3: return f(Constant<3>{}, scheme);
            case 4: return f(Constant<4>{}, scheme);
            case 5: return f(Constant<5>{}, scheme);
            case 6: return f(Constant<6>{}, scheme);
            default: return f(Constant<8>{}, scheme);
        }
    };
    constexpr SchemeConstant<Scheme::super32> super32;
    constexpr SchemeConstant<Scheme::super16_signed> signed16;
    switch (w.scheme) {
        case Scheme::symmetric: return by_bits(SchemeConstant<Scheme::symmetric>{});
        case Scheme::affine: return by_bits(SchemeConstant<Scheme::affine>{});
        case Scheme::super32: return w.bits == 4 ? f(Constant<4>{}, super32) : f(Constant<5>{}, super32);
        case Scheme::super16: return f(Constant<2>{}, SchemeConstant<Scheme::super16>{});
        default: return w.bits == 3 ? f(Constant<3>{}, signed16) : f(Constant<6>{}, signed16);
    }
}

}  // namespace EXL_ISA
