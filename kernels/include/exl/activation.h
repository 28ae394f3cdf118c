// Activation functions of float32, with the same bits wherever they are inlined: no sum is left to be fused by chance.
#pragma once

#include "exl/math.h"
#include "exl/types.h"

namespace exl {

EXL_DEVICE float sigmoid(float x) { return reciprocal_fast(1.0f + exp_fast(-x)); }

// x: any number; large |x| saturate without NaN.
EXL_DEVICE float activate(exl_activation kind, float x) {
    if (kind == exl_silu) return x * sigmoid(x);
    // tanh(y) = 2 sigmoid(2 y) - 1, hence x / 2 * (1 + tanh(y)) = x * sigmoid(2 y).
    if (kind == exl_gelu_tanh) return x * sigmoid(1.5957691216057308f * x * fused_multiply_add(0.044715f * x, x, 1.0f));
    if (kind == exl_gelu) return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
    return x;
}

}  // namespace exl
