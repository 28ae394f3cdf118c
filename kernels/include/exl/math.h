// Functions of float32 that differ by name or by precision between compilers.
#pragma once

#include "exl/portability.h"

#include <math.h>

namespace exl {

// Within a few units in the last place. 2^x and e^x.
EXL_DEVICE float exp2_fast(float x) {
#if defined(EXL_EMU)
    return exp2f(x);
#elif defined(EXL_HIP)
    return __builtin_amdgcn_exp2f(x);
#else
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#endif
}
EXL_DEVICE float exp_fast(float x) { return exp2_fast(x * 1.4426950408889634f); }

EXL_DEVICE float reciprocal_fast(float x) {
#if defined(EXL_EMU)
    return 1.0f / x;
#elif defined(EXL_HIP)
    return __builtin_amdgcn_rcpf(x);
#else
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#endif
}

// 1 / sqrt(x), rounded to nearest where the device has it, else within 2 units in the last place.
EXL_DEVICE float reciprocal_sqrt(float x) {
#if defined(EXL_EMU)
    return 1.0f / sqrtf(x);
#else
    return rsqrtf(x);
#endif
}

// a * b + c with one rounding, everywhere.
EXL_DEVICE float fused_multiply_add(float a, float b, float c) { return fmaf(a, b, c); }

// To the nearest integer, ties to even; saturates.
EXL_DEVICE int32_t round_to_int(float x) {
#if defined(EXL_EMU)
    const float rounded = nearbyintf(x);
    return rounded >= 0x1p31f ? INT32_MAX : rounded <= -0x1p31f ? INT32_MIN : static_cast<int32_t>(rounded);
#else
    return __float2int_rn(x);
#endif
}

}  // namespace exl
