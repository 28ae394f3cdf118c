// Codes and scales of GroupAffine steps in registers; the picture is in layouts/group_affine.h.
#pragma once

#include "exl/bits.h"
#include "exl/half.h"
#include "exl/warp.h"
#include "layouts/group_affine.h"

namespace exl {
namespace gemm {

// A code as a half: the subnormal code * 2^-24, or 1024 + code where matrix instructions may flush subnormal numbers
// (CDNA 2 does). What is added to every code is subtracted through the sum of activations.
#if defined(EXL_HIP) || defined(EXL_EMU_NORMAL_HALVES)
constexpr uint32_t code_magic = 0x64006400;
constexpr int code_bias = 1024;
constexpr float code_unit = 1.0f;
// A small whole number, negated or not, in both halves of a word and in the unit of codes.
EXL_LAYOUT uint32_t constant_pair(int value) {
    int exponent = 0, magnitude = value < 0 ? -value : value;
    while (magnitude >> (exponent + 1)) exponent++;
    const uint32_t mantissa = (static_cast<uint32_t>(magnitude) << 10 >> exponent) & 1023;
    const uint32_t half = (value < 0 ? 0x8000u : 0u) | static_cast<uint32_t>(15 + exponent) << 10 | mantissa;
    return half << 16 | half;
}
#else
constexpr uint32_t code_magic = 0;
constexpr int code_bias = 0;
constexpr float code_unit = 0x1p24f;
EXL_LAYOUT uint32_t constant_pair(int value) {
    const uint32_t half = value < 0 ? 0x8000u | static_cast<uint32_t>(-value) : static_cast<uint32_t>(value);
    return half << 16 | half;
}
#endif

// (word >> shift) & mask, with the magic number where there is one.
EXL_DEVICE uint32_t masked(uint32_t word, uint32_t mask, uint32_t magic) {
    return code_magic ? and_or(word, mask, magic) : word & mask;
}

template <int bits> struct Codes {
    // Codes of rows g + 8 are left where they stand in a half, if all their bits then are in its mantissa.
    static constexpr int lift = 2 * bits <= 10 ? bits : 0;
    uint32_t words[bits];

    EXL_DEVICE void load(const uint8_t* codes, int lane) {
        constexpr int wide = layouts::wide_words(bits);
#pragma unroll
        for (int i = 0; i < wide; i += 4) {
            const uint4 four = reinterpret_cast<const uint4*>(codes)[i / 4 * group_size + lane];
            words[i] = four.x, words[i + 1] = four.y, words[i + 2] = four.z, words[i + 3] = four.w;
        }
        if constexpr ((bits & 2) != 0) {
            const uint2 two = reinterpret_cast<const uint2*>(codes + 4 * wide * group_size)[lane];
            words[wide] = two.x, words[wide + 1] = two.y;
        }
        if constexpr ((bits & 1) != 0)
            words[bits - 1] = reinterpret_cast<const uint32_t*>(codes)[(bits - 1) * group_size + lane];
    }

    // Two codes as halves, those of odd pairs 2^lift times too large; `index` is a constant after unrolling.
    EXL_DEVICE uint32_t pair(int index, uint32_t magic) const {
        constexpr int coupled = layouts::coupled_per_word(bits), all = layouts::coupled_pairs(bits);
        constexpr uint32_t mask = ((1u << bits) - 1) * 0x10001u;
        const int up = index % 2 * lift;
        if (index < all) {
            if constexpr (bits == 8) {
                if (index % 2) return byte_perm(words[index / 2], magic, 0x5351);  // bytes 1 and 3
            }
            return masked(words[index / coupled] >> (bits * (index % coupled) - up), mask << up, magic);
        }
        if (index < layouts::whole_pairs(bits))
            return masked(words[(index - all) % bits] >> (bits * coupled - up), mask << up, magic);
        return left_over(index - layouts::whole_pairs(bits), magic);
    }

 private:
    EXL_DEVICE uint32_t left_over(int i, uint32_t magic) const {
        if constexpr (bits == 6) {
            const uint32_t low = masked(words[i % 4] >> 12, 0x000f000fu, magic);
            return and_or(words[4 + i / 2 % 2] >> (8 + 2 * (i % 2)), 0x00300030u, low);
        }
        uint32_t pair = magic;  // an odd one
#pragma unroll
        for (int j = 0; j < bits; j++) pair = and_or(words[j] >> (15 - j - lift), 0x00010001u << (j + lift), pair);
        return pair;
    }
};

// Super scales of rows g and g + 8, in fp32.
struct SuperScales {
    float scale[2], minimum[2];
};

// Scales and offsets of a step, read and turned into fp32 group by group.
template <int bits, int scheme> struct Scales {
    static constexpr bool has_offset = scheme == exl_affine || scheme == exl_super32 || scheme == exl_super16;
    static constexpr bool has_fields = layouts::has_fields(bits, scheme);
    static constexpr uint32_t exponent_23 = 0x4b000000;  // of 2^23, as a float
    static constexpr int small_bias = has_fields ? 32 : 128;
    uint32_t words[scheme == exl_affine ? 4 : 2];

    EXL_DEVICE void load(const uint8_t* scales, int g) {
        if constexpr (scheme == exl_affine) {
            const uint4 four = reinterpret_cast<const uint4*>(scales)[g];
            words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
        } else if constexpr (has_fields) {
            words[0] = reinterpret_cast<const uint32_t*>(scales)[g];
            const uint32_t high = reinterpret_cast<const uint16_t*>(scales + 32)[g];
            words[1] = funnel_shift_right(words[0], high, 24);  // fields 4..7
        } else {
            const uint2 two = reinterpret_cast<const uint2*>(scales)[g];
            words[0] = two.x, words[1] = two.y;
        }
    }

    EXL_DEVICE static SuperScales load_super(const uint8_t* supers, int g) {
        SuperScales super = {};
        if constexpr (scheme == exl_super16_signed) {
            const float2 d = to_float2(half2_from_bits(reinterpret_cast<const uint32_t*>(supers)[g]));
            super.scale[0] = d.x, super.scale[1] = d.y;
        } else if constexpr (layouts::is_super(scheme)) {
            const uint2 two = reinterpret_cast<const uint2*>(supers)[g];
            const float2 d = to_float2(half2_from_bits(two.x)), dmin = to_float2(half2_from_bits(two.y));
            super.scale[0] = d.x, super.scale[1] = d.y, super.minimum[0] = -dmin.x, super.minimum[1] = -dmin.y;
        }
        return super;
    }

    // A number of up to 23 bits as a float: the mantissa of 2^23 + field, less 2^23 and the bias.
    EXL_DEVICE static float small(uint32_t field, int bias) {
        return bit_cast<float>(field) - (8388608.0f + static_cast<float>(bias));
    }
    EXL_DEVICE static uint32_t field_of(uint32_t word, int field) {
        return and_or(word >> 6 * field, 63u, exponent_23);
    }
    EXL_DEVICE static uint32_t byte_of(uint32_t word, int byte) {
        return byte_perm(word, exponent_23, 0x7440u | static_cast<uint32_t>(byte));
    }

    // Rows g (0) and g + 8 (1) of group `group` of the step.
    EXL_DEVICE void get(int group, const SuperScales& super, float (&scale)[2], float (&offset)[2]) const {
        if constexpr (layouts::is_super(scheme)) {
            get_small(0, 2 * group, super, scale[0], offset[0]);
            get_small(1, 2 * group + 1, super, scale[1], offset[1]);
        } else {
            const float2 s = to_float2(half2_from_bits(words[group]));
            scale[0] = s.x, scale[1] = s.y;
            if constexpr (scheme == exl_affine) {
                const float2 o = to_float2(half2_from_bits(words[2 + group]));
                offset[0] = o.x, offset[1] = o.y;
            }
        }
    }

 private:
    EXL_DEVICE void get_small(int high, int field, const SuperScales& super, float& scale, float& offset) const {
        const float d = super.scale[high], dmin = super.minimum[high];
        if constexpr (scheme == exl_super32) {
            scale = d * small(field_of(words[0], field), 0);
            offset = dmin * small(field_of(words[1], field), 0);
        } else if constexpr (scheme == exl_super16) {
            const uint32_t word = words[field / 4] >> 8 * (field % 4);
            scale = d * small(and_or(word, 15u, exponent_23), 0);
            offset = dmin * small(and_or(word >> 4, 15u, exponent_23), 0);
        } else if constexpr (has_fields) {
            scale = d * small(field_of(words[field / 4], field % 4), small_bias);
        } else {
            scale = d * small(byte_of(words[field / 4], field % 4), small_bias);
        }
    }
};

}  // namespace gemm
}  // namespace exl
