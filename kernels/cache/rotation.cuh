// The Hadamard-32 rotation of keys, values and queries (specs: kv_cache, 3).
#pragma once

#include "exl/warp.h"

namespace exl {
namespace kv {

// The orthonormal Walsh-Hadamard transform, Sylvester order, of 32 values, one a lane. Additions in the order of
// kernels/cpu/kv_cache.h, so that both give the same bits.
EXL_DEVICE float rotate32(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        const float other = shuffle_xor(value, distance);
        value = lane() & distance ? other - value : value + other;
    }
    return value * 0.17677669529663687f;
}

}  // namespace kv
}  // namespace exl
