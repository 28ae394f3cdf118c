// Scalar conversions between float and the 16-bit formats, round to nearest even. No intrinsics.
#pragma once

#include <cstdint>
#include <cstring>

namespace exl {

static inline uint32_t float_bits(float x) {
    uint32_t b;
    std::memcpy(&b, &x, 4);
    return b;
}
static inline float bits_float(uint32_t b) {
    float x;
    std::memcpy(&x, &b, 4);
    return x;
}

static inline float half_to_float(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    if (exponent == 31) return bits_float(sign | 0x7f800000u | (mantissa << 13));
    if (exponent == 0) {
        const float value = float(mantissa) * 0x1p-24f;
        return sign ? -value : value;
    }
    return bits_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

static inline uint16_t float_to_half(float x) {
    const uint32_t bits = float_bits(x), sign = (bits >> 16) & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);    // NaN
    if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);   // rounds to infinity
    if (magnitude < 0x38800000) {                                  // subnormal: let the float adder round
        const float shifted = bits_float(magnitude) + 0.5f;
        return uint16_t(sign | (float_bits(shifted) - 0x3f000000));
    }
    const uint32_t odd = (magnitude >> 13) & 1;
    return uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + odd) >> 13));
}

static inline float bf16_to_float(uint16_t b) { return bits_float(uint32_t(b) << 16); }

static inline uint16_t float_to_bf16(float x) {
    const uint32_t bits = float_bits(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace exl
