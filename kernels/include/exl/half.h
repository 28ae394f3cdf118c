// half, half2 and bfloat16, and all arithmetic on them that kernels may use.
#pragma once

#include "exl/portability.h"

#include <string.h>

#if defined(EXL_EMU)
#include "emulator/half.h"
#endif

namespace exl {

#if !defined(EXL_EMU)
using half = ::__half;
using half2 = ::__half2;
#endif

struct bfloat16 {
    uint16_t bits;
};
struct alignas(4) bfloat162 {
    bfloat16 x, y;
};

// A value seen as another type of the same size.
template <class To, class From> EXL_HOST_DEVICE To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

EXL_DEVICE uint32_t bits(half2 value) { return bit_cast<uint32_t>(value); }
EXL_DEVICE half2 half2_from_bits(uint32_t value) { return bit_cast<half2>(value); }
EXL_DEVICE uint16_t bits(half value) { return bit_cast<uint16_t>(value); }
EXL_DEVICE half half_from_bits(uint16_t value) { return bit_cast<half>(value); }

#if defined(EXL_EMU)

EXL_DEVICE float to_float(half value) { return emulator::widen(value); }
EXL_DEVICE half to_half(float value) { return emulator::narrow(value); }
EXL_DEVICE half2 pair(half low, half high) { return {low, high}; }
EXL_DEVICE half low(half2 value) { return value.x; }
EXL_DEVICE half high(half2 value) { return value.y; }
EXL_DEVICE float2 to_float2(half2 value) { return {to_float(value.x), to_float(value.y)}; }
EXL_DEVICE half2 to_half2(float x, float y) { return {to_half(x), to_half(y)}; }
namespace emulator {
inline half fma(half a, half b, half c) { return narrow(double(widen(a)) * double(widen(b)) + double(widen(c))); }
inline half add(half a, half b) { return narrow(widen(a) + widen(b)); }
inline half subtract(half a, half b) { return narrow(widen(a) - widen(b)); }
inline half multiply(half a, half b) { return narrow(widen(a) * widen(b)); }
// A NaN loses against a number, as on hardware.
inline half larger(half a, half b) { return widen(a) != widen(a) || widen(b) > widen(a) ? b : a; }
inline half smaller(half a, half b) { return widen(a) != widen(a) || widen(b) < widen(a) ? b : a; }
}  // namespace emulator
// Lane by lane, each rounded once to nearest even.
EXL_DEVICE half2 fma2(half2 a, half2 b, half2 c) {
    return {emulator::fma(a.x, b.x, c.x), emulator::fma(a.y, b.y, c.y)};
}
EXL_DEVICE half2 add2(half2 a, half2 b) { return {emulator::add(a.x, b.x), emulator::add(a.y, b.y)}; }
EXL_DEVICE half2 subtract2(half2 a, half2 b) { return {emulator::subtract(a.x, b.x), emulator::subtract(a.y, b.y)}; }
EXL_DEVICE half2 multiply2(half2 a, half2 b) { return {emulator::multiply(a.x, b.x), emulator::multiply(a.y, b.y)}; }
EXL_DEVICE half2 max2(half2 a, half2 b) { return {emulator::larger(a.x, b.x), emulator::larger(a.y, b.y)}; }
EXL_DEVICE half2 min2(half2 a, half2 b) { return {emulator::smaller(a.x, b.x), emulator::smaller(a.y, b.y)}; }

#else

EXL_DEVICE float to_float(half value) { return __half2float(value); }
EXL_DEVICE half to_half(float value) { return __float2half_rn(value); }
EXL_DEVICE half2 pair(half low, half high) { return __halves2half2(low, high); }
EXL_DEVICE half low(half2 value) { return __low2half(value); }
EXL_DEVICE half high(half2 value) { return __high2half(value); }
EXL_DEVICE float2 to_float2(half2 value) { return __half22float2(value); }
EXL_DEVICE half2 to_half2(float x, float y) { return __floats2half2_rn(x, y); }
// Lane by lane, each rounded once to nearest even.
EXL_DEVICE half2 fma2(half2 a, half2 b, half2 c) { return __hfma2(a, b, c); }
EXL_DEVICE half2 add2(half2 a, half2 b) { return __hadd2(a, b); }
EXL_DEVICE half2 subtract2(half2 a, half2 b) { return __hsub2(a, b); }
EXL_DEVICE half2 multiply2(half2 a, half2 b) { return __hmul2(a, b); }
#if defined(EXL_CUDA)
// A NaN loses against a number. sm_75 has no such instruction.
EXL_DEVICE half2 max2(half2 a, half2 b) {
#if EXL_SM >= 80
    return __hmax2(a, b);
#else
    const float2 x = to_float2(a), y = to_float2(b);
    return to_half2(fmaxf(x.x, y.x), fmaxf(x.y, y.y));
#endif
}
EXL_DEVICE half2 min2(half2 a, half2 b) {
#if EXL_SM >= 80
    return __hmin2(a, b);
#else
    const float2 x = to_float2(a), y = to_float2(b);
    return to_half2(fminf(x.x, y.x), fminf(x.y, y.y));
#endif
}
#else
EXL_DEVICE half2 max2(half2 a, half2 b) {
    const float2 x = to_float2(a), y = to_float2(b);
    return to_half2(fmaxf(x.x, y.x), fmaxf(x.y, y.y));
}
EXL_DEVICE half2 min2(half2 a, half2 b) {
    const float2 x = to_float2(a), y = to_float2(b);
    return to_half2(fminf(x.x, y.x), fminf(x.y, y.y));
}
#endif

#endif

EXL_DEVICE half2 broadcast2(half value) { return pair(value, value); }
EXL_DEVICE half2 to_half2(float2 value) { return to_half2(value.x, value.y); }

EXL_HOST_DEVICE float to_float(bfloat16 value) { return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }
EXL_HOST_DEVICE float2 to_float2(bfloat162 value) { return make_float2(to_float(value.x), to_float(value.y)); }

// To nearest even; a NaN stays one.
EXL_HOST_DEVICE bfloat16 to_bfloat16(float value) {
#if EXL_SM >= 80
    bfloat16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
#else
    const uint32_t word = bit_cast<uint32_t>(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((word >> 16) | 0x40)};
    return {static_cast<uint16_t>((word + 0x7fff + ((word >> 16) & 1)) >> 16)};
#endif
}
EXL_HOST_DEVICE bfloat162 to_bfloat162(float x, float y) {
#if EXL_SM >= 80
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(y), "f"(x));
    return bit_cast<bfloat162>(word);
#else
    return {to_bfloat16(x), to_bfloat16(y)};
#endif
}

// For kernels that are templates over the type of what they read and write.
template <class T> EXL_DEVICE T from_float(float value);
template <> EXL_DEVICE float from_float<float>(float value) { return value; }
template <> EXL_DEVICE half from_float<half>(float value) { return to_half(value); }
template <> EXL_DEVICE bfloat16 from_float<bfloat16>(float value) { return to_bfloat16(value); }
EXL_DEVICE float to_float(float value) { return value; }

}  // namespace exl
