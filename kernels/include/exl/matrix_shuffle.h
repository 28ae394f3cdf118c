// The matrix products of matrix.h made of shuffles and ordinary arithmetic, for devices that lack an instruction. The
// emulator's tests run this text too.
#pragma once

#include "exl/bits.h"
#include "exl/half.h"
#include "exl/warp.h"

namespace exl {
namespace shuffled {

// How a word of a and a word of b, which cover the same k, add to a sum.
struct Half {
    using Sum = float;
    EXL_DEVICE static float add(float sum, uint32_t a, uint32_t b) {
        const float2 x = to_float2(half2_from_bits(a)), y = to_float2(half2_from_bits(b));
        return fmaf(x.y, y.y, fmaf(x.x, y.x, sum));
    }
};
struct BFloat16 {
    using Sum = float;
    EXL_DEVICE static float add(float sum, uint32_t a, uint32_t b) {
        const float2 x = to_float2(bit_cast<bfloat162>(a)), y = to_float2(bit_cast<bfloat162>(b));
        return fmaf(x.y, y.y, fmaf(x.x, y.x, sum));
    }
};
struct SignedBytes {
    using Sum = int32_t;
    EXL_DEVICE static int32_t add(int32_t sum, uint32_t a, uint32_t b) { return dot4(a, b, sum); }
};
struct UnsignedBytes {
    using Sum = int32_t;
    EXL_DEVICE static int32_t add(int32_t sum, uint32_t a, uint32_t b) { return dot4_unsigned(a, b, sum); }
};

// Word w of row g of a is in lane 4 g + w % 4, and so is word w of column g of b.
template <class Type>
EXL_DEVICE void multiply(typename Type::Sum (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const int major = lane() / 4, minor = lane() % 4;
#pragma unroll
    for (int half_k = 0; half_k < 2; half_k++) {
#pragma unroll
        for (int word = 0; word < 4; word++) {
            const uint32_t top = shuffle(a[2 * half_k], 4 * major + word);
            const uint32_t bottom = shuffle(a[2 * half_k + 1], 4 * major + word);
            const uint32_t left = shuffle(b[half_k], 8 * minor + word);
            const uint32_t right = shuffle(b[half_k], 8 * minor + 4 + word);
            c[0] = Type::add(c[0], top, left);
            c[1] = Type::add(c[1], top, right);
            c[2] = Type::add(c[2], bottom, left);
            c[3] = Type::add(c[3], bottom, right);
        }
    }
}

EXL_DEVICE const uint16_t* row_of(const void* row, int from) {
    return reinterpret_cast<const uint16_t*>(shuffle(reinterpret_cast<uint64_t>(row), from));
}

template <int count> EXL_DEVICE void load_matrix(uint32_t (&out)[count], const void* row) {
    for (int i = 0; i < count; i++) {
        const uint16_t* from = row_of(row, 8 * i + lane() / 4);
        out[i] = reinterpret_cast<const uint32_t*>(from)[lane() % 4];
    }
}

template <int count> EXL_DEVICE void load_matrix_transposed(uint32_t (&out)[count], const void* row) {
    for (int i = 0; i < count; i++) {
        const uint16_t* even = row_of(row, 8 * i + lane() % 4 * 2);
        const uint16_t* odd = row_of(row, 8 * i + lane() % 4 * 2 + 1);
        out[i] = static_cast<uint32_t>(odd[lane() / 4]) << 16 | even[lane() / 4];
    }
}

}  // namespace shuffled
}  // namespace exl
