// The orthonormal Walsh-Hadamard transform of 128 numbers, Sylvester order: its own inverse.
#pragma once

#include "exl/warp.h"

namespace exl {

constexpr int hadamard_size = 128;

// A group of 32 lanes holds the numbers, four a lane: values[i] of lane L is number 4 L + i, before and after. Two rounds
// of the butterfly are in registers, five by shuffles.
EXL_DEVICE void rotate128(float (&values)[4]) {
    const float a = values[0] + values[1], b = values[0] - values[1];
    const float c = values[2] + values[3], d = values[2] - values[3];
    values[0] = a + c, values[1] = b + d, values[2] = a - c, values[3] = b - d;
#pragma unroll
    for (int distance = 1; distance < group_size; distance *= 2) {
        const bool upper = (lane() & distance) != 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float other = shuffle_xor(values[i], distance);
            values[i] = upper ? other - values[i] : values[i] + other;
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) values[i] *= 0.08838834764831845f;  // 1 / sqrt(128)
}

}  // namespace exl
