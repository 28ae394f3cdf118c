// Bit and byte instructions that compilers do not find by themselves.
#pragma once

#include "exl/portability.h"

namespace exl {

// (value & mask) | magic in one instruction. On NVIDIA that holds only if mask or magic is in a register: pass the magic
// number through opaque(), which the compiler cannot see through.
EXL_DEVICE uint32_t and_or(uint32_t value, uint32_t mask, uint32_t magic) {
#if EXL_SM
    uint32_t result;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(value), "r"(mask), "r"(magic));
    return result;
#else
    return (value & mask) | magic;
#endif
}

// (a ^ b) & mask ^ ... any function of three bits: bit i of `table` is the result where (a, b, c) = the bits of i.
// a = 0xf0, b = 0xcc, c = 0xaa: (a & b) | c is (0xf0 & 0xcc) | 0xaa = 0xea.
template <int table> EXL_DEVICE uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
#if EXL_SM
    uint32_t result;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(result) : "r"(a), "r"(b), "r"(c), "n"(table));
    return result;
#else
    uint32_t result = 0;
    for (int i = 0; i < 8; i++)
        if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return result;
#endif
}

// The same number, of which the compiler knows nothing: it stays in a register.
EXL_DEVICE uint32_t opaque(uint32_t value) {
#if EXL_SM
    asm volatile("" : "+r"(value));
#endif
    return value;
}

// Four of the eight bytes of (high, low): nibble i of the selector says which becomes byte i, 0..3 from low, 4..7 from
// high. Selector nibbles above 7 are not supported.
EXL_DEVICE uint32_t byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
#if defined(EXL_CUDA)
    return __byte_perm(low, high, selector);
#elif defined(EXL_HIP)
    // v_perm takes a byte per selector and the operands in the other order.
    const uint32_t spread =
        (selector & 0xf) | (selector & 0xf0) << 4 | (selector & 0xf00) << 8 | (selector & 0xf000) << 12;
    return __builtin_amdgcn_perm(high, low, spread);
#else
    const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) result |= static_cast<uint32_t>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return result;
#endif
}

// The low 32 bits of (high, low) shifted right by 0..31.
EXL_DEVICE uint32_t funnel_shift_right(uint32_t low, uint32_t high, uint32_t shift) {
#if defined(EXL_CUDA)
    return __funnelshift_r(low, high, shift);
#elif defined(EXL_HIP)
    return __builtin_amdgcn_alignbit(high, low, shift);
#else
    return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
#endif
}

// The high 32 bits of (high, low) shifted left by 0..31.
EXL_DEVICE uint32_t funnel_shift_left(uint32_t low, uint32_t high, uint32_t shift) {
#if defined(EXL_CUDA)
    return __funnelshift_l(low, high, shift);
#else
    return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
#endif
}

// `width` bits from bit `start` on; 0 < width < 32.
EXL_DEVICE uint32_t bit_field(uint32_t value, int start, int width) { return value >> start & ((1u << width) - 1); }

namespace bytes {

// Sum of four products of bytes, in plain arithmetic.
template <class A> EXL_DEVICE int32_t dot4_plain(uint32_t a, uint32_t b, int32_t sum) {
    for (int i = 0; i < 4; i++) sum += static_cast<A>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
    return sum;
}

}  // namespace bytes

// sum + a . b over four bytes each: signed by signed, and unsigned by signed.
EXL_DEVICE int32_t dot4(uint32_t a, uint32_t b, int32_t sum) {
#if EXL_SM
    int32_t result;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
    return result;
#elif EXL_RDNA >= 11
    return __builtin_amdgcn_sudot4(true, static_cast<int>(a), true, static_cast<int>(b), sum, false);
#elif EXL_CDNA || EXL_RDNA == 10
    return __builtin_amdgcn_sdot4(static_cast<int>(a), static_cast<int>(b), sum, false);
#else
    return bytes::dot4_plain<int8_t>(a, b, sum);
#endif
}
EXL_DEVICE int32_t dot4_unsigned(uint32_t a, uint32_t b, int32_t sum) {
#if EXL_SM
    int32_t result;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
    return result;
#elif EXL_RDNA >= 11
    return __builtin_amdgcn_sudot4(false, static_cast<int>(a), true, static_cast<int>(b), sum, false);
#elif EXL_CDNA || EXL_RDNA == 10
    // a = (a - 128) + 128, and the first part fits a signed byte.
    const int sum_of_b = __builtin_amdgcn_sdot4(0x01010101, static_cast<int>(b), 0, false);
    return __builtin_amdgcn_sdot4(static_cast<int>(a ^ 0x80808080u), static_cast<int>(b), sum + 128 * sum_of_b, false);
#else
    return bytes::dot4_plain<uint8_t>(a, b, sum);
#endif
}

EXL_DEVICE int popcount(uint32_t value) {
#if defined(EXL_EMU)
    return __builtin_popcount(value);
#else
    return __popc(value);
#endif
}

// Zeros above the highest set bit; 32 for 0.
EXL_DEVICE int leading_zeros(uint32_t value) {
#if defined(EXL_EMU)
    return value ? __builtin_clz(value) : 32;
#else
    return __clz(static_cast<int>(value));
#endif
}

}  // namespace exl
