// Codes of the cache as operands of a matrix instruction (layouts/kv_page.h).
#pragma once

#include "exl/bits.h"
#include "exl/half.h"
#include "layouts/kv_page.h"

namespace exl {
namespace attention {

template <int number> struct Constant {
    static constexpr int value = number;
};

// Two quads of one width of plane: the first in the low half of the words, the second in the high half.
template <int code_bits> struct Codes {
    static constexpr bool has8 = code_bits == 8, has4 = code_bits & 4, has2 = code_bits & 2, has1 = code_bits & 1;
    uint32_t eight[2], four, two, one;

    // Quads 2 t and 2 t + 1 of a group: two neighbouring features of one key.
    EXL_DEVICE void load_key(const uint8_t* group, int t) {
        if constexpr (has8) {
            const uint2 words = reinterpret_cast<const uint2*>(group)[t];
            eight[0] = byte_perm(words.x, words.y, 0x5410);
            eight[1] = byte_perm(words.x, words.y, 0x7632);
        }
        if constexpr (has4) four = reinterpret_cast<const uint32_t*>(group)[t];
        if constexpr (has2) {
            const uint32_t both = reinterpret_cast<const uint16_t*>(group + kv::plane_offset(code_bits, 2))[t];
            two = both | both << 8;
        }
        if constexpr (has1) {
            const uint32_t both = group[kv::plane_offset(code_bits, 1) + t];
            one = both | both << 12;
        }
    }

    // Quad g of the groups of two tokens: one feature of two values.
    EXL_DEVICE void load_values(const uint8_t* first, const uint8_t* second, int g) {
        if constexpr (has8) {
            const uint32_t a = reinterpret_cast<const uint32_t*>(first)[g];
            const uint32_t b = reinterpret_cast<const uint32_t*>(second)[g];
            eight[0] = byte_perm(a, b, 0x5410);
            eight[1] = byte_perm(a, b, 0x7632);
        }
        if constexpr (has4)
            four = reinterpret_cast<const uint16_t*>(first)[g] | reinterpret_cast<const uint16_t*>(second)[g] << 16;
        if constexpr (has2) {
            constexpr int at = kv::plane_offset(code_bits, 2);
            two = first[at + g] | second[at + g] << 16;
        }
        if constexpr (has1) {
            constexpr int at = kv::plane_offset(code_bits, 1);
            one = (first[at + g / 2] | second[at + g / 2] << 16) >> 4 * (g % 2);
        }
    }

    // Drops the first `count` of the four codes of each quad, so that number `count` becomes number 0.
    EXL_DEVICE void skip(int count) {
        if constexpr (has8)
            eight[0] = (count & 2 ? eight[1] : eight[0]) >> 8 * (count % 2);  // dim 64 or less: 2 at most follow
        if constexpr (has4) four >>= 4 * count;
        if constexpr (has2) two >>= 2 * count;
        if constexpr (has1) one >>= count;
    }

    // Code i of each quad as (q - m + 1/2) / m, exact. With the code above a set lowest bit, the mantissa 2 q + 1 of a number
    // between 2^(10 - b) and 2^(11 - b) counts halves of 1 / m. `magic` is that number's rest, in a register.
    static constexpr uint32_t one_half = static_cast<uint32_t>(25 - code_bits) << 10 | 1;
    static constexpr uint32_t magic_bits = one_half << 16 | one_half;
    static constexpr uint32_t middle_bits = []() constexpr {  // 2^(10 - b) + 1 as half
        return static_cast<uint32_t>(25 - code_bits) << 10 | 1u << code_bits;
    }();

    EXL_DEVICE half2 value(int i, uint32_t magic) const {
        uint32_t word = magic;
        if constexpr (has8) word = take<8>(eight[i / 2], 8 * (i % 2), word);
        if constexpr (has4) word = take<4>(four, 4 * i, word);
        if constexpr (has2) word = take<2>(two, 2 * i, word);
        if constexpr (has1) word = take<1>(one, i, word);
        return subtract2(half2_from_bits(word), half2_from_bits(middle_bits << 16 | middle_bits));
    }

 private:
    // The field of `width` bits at bit `from` of each half, put to its place above bit 0.
    template <int width> EXL_DEVICE static uint32_t take(uint32_t plane, int from, uint32_t word) {
        constexpr int to = 1 + kv::plane_low_bit(code_bits, width);
        constexpr uint32_t mask = ((1u << width) - 1) << to;
        return and_or(from < to ? plane << (to - from) : plane >> (from - to), mask << 16 | mask, word);
    }
};

}  // namespace attention
}  // namespace exl
