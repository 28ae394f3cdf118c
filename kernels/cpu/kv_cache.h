// Pages of 256 tokens, one region per kv head; and how one token is written. D is padded_dim.
//
//   keys  fp16   [16 blocks][D][16 tokens] half          so that 16 scores come from one multiply-add per feature
//   keys  b bit  [16 blocks][D / 32][codes of 16 tokens x 32 features, unpack.h], then half scale [16 blocks][D / 32][16]
//   values fp16  [256][D] half
//   values b bit [D / 32][256][4 b bytes], then half scale [D / 32][256]
//
// Quantization (specs/kv_cache.md 2, 3): Hadamard-32 rotation, then per 32 features q = clamp(floor(w / s * m + m), 0, 2m - 1),
// value (q - m + 1/2) / m * s with m = 2^(b-1) and s = absmax as half, rounded up; s = 0 decodes to exact zeros.
// A token is quantised alone, so stored bytes never change.
// What neither way can hold (NaN, infinity, values that fp16 rounds to infinity, a group whose absmax exceeds 65504) is
// reported; the bytes then written are the nearest there are, and no NaN in packed pages.
//
// Value codes of a group, planes as in unpack.h but along features:
//   8 bit  byte d        4 bit  byte i = d_i | d_(i+16) << 4        2 bit  two words, 2 bits each        1 bit  one word
#pragma once

#include "activations.h"
#include "codes.h"

namespace EXL_ISA {

struct PageLayout {
    int64_t key_head, value_head;  // bytes of a head in a page
    int64_t key_scales, value_scales;  // offset of the scales in them
};

inline PageLayout page_layout(const LayerCache& c) {
    const int64_t d = padded_dim(c), full = 2 * d * page_size;
    PageLayout p{full, full, 0, 0};
    if (c.key_bits != half_bits) {
        p.key_scales = d * page_size * c.key_bits / 8;
        p.key_head = p.key_scales + d / 32 * page_size * 2;
    }
    if (c.value_bits != half_bits) {
        p.value_scales = d * page_size * c.value_bits / 8;
        p.value_head = p.value_scales + d / 32 * page_size * 2;
    }
    return p;
}

// In-place orthonormal Walsh-Hadamard transform of 32 values.
inline void hadamard32(float* x) {
    for (int h = 16; h; h /= 2)
        for (int i = 0; i < 32; i += 2 * h)
            for (int j = i; j < i + h; ++j) {
                const float a = x[j], b = x[j + h];
                x[j] = a + b;
                x[j + h] = a - b;
            }
    for (int i = 0; i < 32; ++i) x[i] *= 0.17677669529663687f;
}

inline void rotate(float* x, int n) {
    for (int i = 0; i < n; i += 32) hadamard32(x + i);
}

constexpr uint16_t largest_half = 0x7bff;  // 65504
constexpr int32_t rounds_to_infinity = 0x477ff000;  // bits of 65520

// The bits of the largest |x|; they order as the magnitudes do, with infinity and NaN above all numbers.
inline int32_t peak_bits(const float* x, int n) {
    int32_t peak = 0;
    for (int i = 0; i < n; ++i) {
        const int32_t bits = int32_t(exl::float_bits(x[i]) & 0x7fffffff);
        peak = bits > peak ? bits : peak;
    }
    return peak;
}

// 32 values to codes and the scale; false: the scale would exceed fp16.
inline bool quantize_group(const float* x, int bits, uint8_t* codes, uint16_t& half) {
    const float peak = exl::bits_float(uint32_t(peak_bits(x, 32)));
    const bool fits = peak <= exl::half_to_float(largest_half);  // false for NaN
    half = fits ? exl::float_to_half(peak) : largest_half;
    if (exl::half_to_float(half) < peak && fits) ++half;
    const float scale = exl::half_to_float(half), m = float(1 << (bits - 1)), top = 2 * m - 1;
    const float inverse = 1.0f / (scale > 1e-10f ? scale : 1e-10f);
    for (int i = 0; i < 32; ++i) {
        const float q = __builtin_floorf(x[i] * inverse * m + m);
        codes[i] = uint8_t(q > 0 ? (q < top ? q : top) : 0);  // 0 for NaN
    }
    return fits;
}

inline void put_value_codes(uint8_t* out, int bits, const uint8_t* codes) {
    each_plane(bits, [&](int width, int low, int) {
        const int mask = (1 << width) - 1;
        const auto field = [&](int d) { return uint32_t((codes[d] >> low) & mask); };
        if (width == 8) {
            for (int d = 0; d < 32; ++d) out[d] = codes[d];
        } else if (width == 4) {
            for (int d = 0; d < 16; ++d) out[d] = uint8_t(field(d) | field(d + 16) << 4);
        } else {
            uint32_t words[2] = {0, 0};
            for (int d = 0; d < 32; ++d) words[d * width / 32] |= field(d) << (d * width % 32);
            __builtin_memcpy(out, words, 4 * size_t(width));
        }
        out += 4 * width;
    });
}

// Features 0..15 and 16..31 of a group as integers.
template <int bits> inline void get_value_codes(const uint8_t* p, i32v lane, i32v& a, i32v& b) {
    a = b = i_zero();
    int low = 0;
    const auto add = [&](i32v x, i32v y) {
        const auto shift = [&](i32v v) {
            return low == 0 ? v : low == 2 ? i_shl<2>(v) : low == 4 ? i_shl<4>(v) : i_shl<6>(v);
        };
        a = i_or(a, shift(x));
        b = i_or(b, shift(y));
    };
    const auto word = [&](int i) {
        int32_t w;
        __builtin_memcpy(&w, p + 4 * i, 4);
        return i_set(w);
    };
    if constexpr (bits == 8) add(i_load_u8(p), i_load_u8(p + 16));
    if constexpr (bits >= 4 && bits < 8) {
        const i32v both = i_load_u8(p);
        add(i_and(both, i_set(15)), i_shr<4>(both));
        p += 16, low += 4;
    }
    if constexpr (bits < 8 && (bits & 2)) {
        const i32v twice = i_add(lane, lane);
        add(i_and(i_shr_each(word(0), twice), i_set(3)), i_and(i_shr_each(word(1), twice), i_set(3)));
        p += 8, low += 2;
    }
    if constexpr (bits < 8 && (bits & 1)) {
        const i32v w = word(0);
        add(i_and(i_shr_each(w, lane), i_set(1)), i_and(i_shr_each(w, i_add(lane, i_set(16))), i_set(1)));
    }
}

// x: padded_dim(c) floats, overwritten. page: the head's region of a page; t: token inside the page. False: x does not fit.
inline bool store_key(const LayerCache& c, uint8_t* page, int t, float* x) {
    const int d = padded_dim(c), block = t / 16, lane = t % 16;
    if (c.key_bits == half_bits) {
        uint16_t* out = reinterpret_cast<uint16_t*>(page) + int64_t(block) * d * 16 + lane;
        for (int i = 0; i < d; ++i) out[16 * i] = exl::float_to_half(x[i]);
        return peak_bits(x, d) < rounds_to_infinity;
    }
    rotate(x, d);
    bool fits = true;
    uint16_t* scales =
        reinterpret_cast<uint16_t*>(page + page_layout(c).key_scales) + int64_t(block) * (d / 32) * 16 + lane;
    for (int g = 0; g < d / 32; ++g) {
        uint8_t codes[32];
        fits &= quantize_group(x + 32 * g, c.key_bits, codes, scales[16 * g]);
        put_row(page + (int64_t(block) * (d / 32) + g) * 64 * c.key_bits, c.key_bits, lane, codes);
    }
    return fits;
}

inline bool store_value(const LayerCache& c, uint8_t* page, int t, float* x) {
    const int d = padded_dim(c);
    if (c.value_bits == half_bits) {
        uint16_t* out = reinterpret_cast<uint16_t*>(page) + int64_t(t) * d;
        for (int i = 0; i + 16 <= d; i += 16) f_store_half(out + i, f_load(x + i));
        for (int i = d / 16 * 16; i < d; ++i) out[i] = exl::float_to_half(x[i]);
        return peak_bits(x, d) < rounds_to_infinity;
    }
    rotate(x, d);
    bool fits = true;
    uint16_t* scales = reinterpret_cast<uint16_t*>(page + page_layout(c).value_scales) + t;
    for (int g = 0; g < d / 32; ++g) {
        uint8_t codes[32];
        fits &= quantize_group(x + 32 * g, c.value_bits, codes, scales[page_size * g]);
        put_value_codes(page + (int64_t(g) * page_size + t) * 4 * c.value_bits, c.value_bits, codes);
    }
    return fits;
}

}  // namespace EXL_ISA
