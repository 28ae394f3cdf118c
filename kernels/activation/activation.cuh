#pragma once

#include "activation/activation.h"
#include "exl/half.h"
#include "exl/math.h"

namespace exl {
namespace gate {

constexpr int threads = 256;

template <exl_activation kind> EXL_DEVICE float activate(float x) {
    if constexpr (kind == exl_silu) return x / (1.0f + exp_fast(-x));
    if constexpr (kind == exl_gelu) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    if constexpr (kind == exl_gelu_tanh) {
        const float inner = 0.79788456080286536f * fused_multiply_add(0.044715f * x * x, x, x);
        return 0.5f * x * (1.0f + tanhf(inner));
    }
    return x;
}

template <exl_activation kind> EXL_KERNEL(threads) gate_rows(exl_gate_args args) {
    const int64_t row = blockIdx.x;
    const int i = static_cast<int>(blockIdx.y * threads + threadIdx.x);
    if (i >= args.width / 2) return;
    const auto at = [&](const void* first, int64_t stride) {
        return reinterpret_cast<const half2*>(static_cast<const half*>(first) + row * stride) + i;
    };
    const float2 a = to_float2(*at(args.gate, args.gate_stride)), b = to_float2(*at(args.up, args.up_stride));
    *const_cast<half2*>(at(args.out, args.out_stride)) = to_half2(activate<kind>(a.x) * b.x, activate<kind>(a.y) * b.y);
}

}  // namespace gate
}  // namespace exl
