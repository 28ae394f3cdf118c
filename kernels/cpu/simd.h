// Picks the vector type of the level being compiled and adds the mathematics written on top of it.
//
// EXL_ISA names the namespace, EXL_LEVEL the level: 0 generic, 1 avx2, 2 avx512, 3 avx512_bf16, 4 amx.
// Everything that ends up in a per-level object lives in that namespace or is static: no inline function may be
// shared between levels, or the linker could hand AVX-512 code to an older processor.
#pragma once

#if EXL_LEVEL >= 2
#include "simd_avx512.h"
#elif EXL_LEVEL == 1
#include "simd_avx2.h"
#else
#include "simd_generic.h"
#endif

namespace EXL_ISA {

// A compile-time number passed to a generic lambda.
template <int n> struct Constant {
    static constexpr int value = n;
};

// e^x for x <= 88; below -87 it stays at e^-87, about 1.6e-38. Error below 2 ulp: Cody-Waite reduction, degree-6 Taylor polynomial.
inline f32v f_exp(f32v x) {
    const f32v low = f_set(-87.0f);
    const f32v clamped = f_min(f_max(x, low), f_set(88.0f));
    const f32v n = f_round(f_mul(clamped, f_set(1.44269504088896341f)));
    f32v r = f_fma(n, f_set(-0.693359375f), clamped);
    r = f_fma(n, f_set(2.12194440e-4f), r);
    f32v p = f_set(1.0f / 720);
    p = f_fma(p, r, f_set(1.0f / 120));
    p = f_fma(p, r, f_set(1.0f / 24));
    p = f_fma(p, r, f_set(1.0f / 6));
    p = f_fma(p, r, f_set(0.5f));
    p = f_fma(p, r, f_set(1.0f));
    p = f_fma(p, r, f_set(1.0f));
    const i32v exponent = i_shl<23>(i_add(f_to_i(n), i_set(127)));
    return f_mul(p, f_bits(exponent));
}

inline f32v f_tanh(f32v x) {
    // 1 - 2 / (e^2x + 1); saturates cleanly on both sides.
    const f32v e = f_exp(f_min(f_add(x, x), f_set(80.0f)));
    return f_sub(f_set(1.0f), f_div(f_set(2.0f), f_add(e, f_set(1.0f))));
}

inline f32v f_silu(f32v x) { return f_div(x, f_add(f_set(1.0f), f_exp(f_min(f_sub(f_zero(), x), f_set(80.0f))))); }

inline f32v f_gelu_tanh(f32v x) {
    const f32v cubic = f_fma(f_mul(f_mul(x, x), x), f_set(0.044715f), x);
    const f32v t = f_tanh(f_mul(cubic, f_set(0.7978845608028654f)));
    return f_mul(f_mul(x, f_set(0.5f)), f_add(t, f_set(1.0f)));
}

// x * Phi(x) with erf after Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
inline f32v f_gelu(f32v x) {
    const f32v z = f_mul(f_abs(x), f_set(0.70710678118654752f));
    const f32v t = f_div(f_set(1.0f), f_fma(z, f_set(0.3275911f), f_set(1.0f)));
    f32v p = f_set(1.061405429f);
    p = f_fma(p, t, f_set(-1.453152027f));
    p = f_fma(p, t, f_set(1.421413741f));
    p = f_fma(p, t, f_set(-0.284496736f));
    p = f_fma(p, t, f_set(0.254829592f));
    const f32v tail = f_mul(f_mul(p, t), f_exp(f_sub(f_zero(), f_mul(z, z))));  // erfc(|x| / sqrt 2)
    // Phi(x) = 1 - tail / 2 for x >= 0, tail / 2 for x < 0; x * Phi(x) = max(x, 0) - |x| * tail / 2.
    return f_sub(f_max(x, f_zero()), f_mul(f_abs(x), f_mul(tail, f_set(0.5f))));
}

// Lanes [0, n) of a vector of 16; n may be outside 0..16.
inline uint16_t lanes_below(int n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : uint16_t((1u << n) - 1); }

}  // namespace EXL_ISA
