// What happens to sums before they are written, for matrices of every family.
#pragma once

#include "exl_cpu.h"
#include "simd.h"

namespace EXL_ISA {

using exl::cpu::Activation;

inline f32v activate(f32v x, Activation kind) {
    switch (kind) {
        case Activation::silu: return f_silu(x);
        case Activation::gelu_tanh: return f_gelu_tanh(x);
        case Activation::gelu: return f_gelu(x);
        default: return x;
    }
}

}  // namespace EXL_ISA
