// Matrix products of a group of 32 lanes, in the fragment layouts of PTX on every device.
//
// With g = lane / 4 and t = lane % 4, a lane holds of c (16, 8) += a (16, k) x b (k, 8)
//
//     16-bit types, k = 16                           8-bit types, k = 32
//     a[0] = a(g,     2t..2t+1)                      a[0] = a(g,     4t..4t+3)
//     a[1] = a(g + 8, 2t..2t+1)                      a[1] = a(g + 8, 4t..4t+3)
//     a[2] = a(g,     2t+8..2t+9)                    a[2] = a(g,     4t+16..4t+19)
//     a[3] = a(g + 8, 2t+8..2t+9)                    a[3] = a(g + 8, 4t+16..4t+19)
//     b[0] = b(2t..2t+1,  g)   b[1] = b(2t+8.., g)   b[0] = b(4t..4t+3, g)   b[1] = b(4t+16.., g)
//     c[0] = c(g, 2t)  c[1] = c(g, 2t+1)  c[2] = c(g+8, 2t)  c[3] = c(g+8, 2t+1)
//
// the element with the lowest index in the lowest bits. On waves of 64 both groups of the wave must come to a product
// together. How the products inside one instruction are summed is the hardware's; it does not depend on other rows.
#pragma once

#include "exl/portability.h"
#include "exl/warp.h"

#if defined(EXL_EMU)
#include "emulator/matrix.h"
#else
#include "exl/matrix_shuffle.h"
#endif

namespace exl {

// Loads `count` matrices of 8 x 8 16-bit values from shared memory. Lane 8 i + r names row r of matrix i: 16 bytes, at a
// multiple of 16. out[i] of a lane is elements 2t, 2t+1 of row g of matrix i; transposed: of column g.
// With fewer than 4 matrices the addresses of the other lanes must still be valid multiples of 16.
template <int count> EXL_DEVICE void load_matrix(uint32_t (&out)[count], const void* row) {
    static_assert(count == 1 || count == 2 || count == 4, "1, 2 or 4 matrices");
#if defined(EXL_EMU)
    emulator::load_matrix("load_matrix", out, row, false);
#elif defined(EXL_CUDA)
    const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    if constexpr (count == 1)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(out[0]) : "r"(from) : "memory");
    else if constexpr (count == 2)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(out[0]), "=r"(out[1])
                     : "r"(from)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(from)
                     : "memory");
#else
    shuffled::load_matrix(out, row);
#endif
}

template <int count> EXL_DEVICE void load_matrix_transposed(uint32_t (&out)[count], const void* row) {
    static_assert(count == 1 || count == 2 || count == 4, "1, 2 or 4 matrices");
#if defined(EXL_EMU)
    emulator::load_matrix("load_matrix_transposed", out, row, true);
#elif defined(EXL_CUDA)
    const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    if constexpr (count == 1)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                     : "=r"(out[0])
                     : "r"(from)
                     : "memory");
    else if constexpr (count == 2)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(out[0]), "=r"(out[1])
                     : "r"(from)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(from)
                     : "memory");
#else
    shuffled::load_matrix_transposed(out, row);
#endif
}

#if defined(EXL_CUDA)

namespace ptx {

// One instruction over k of 16 (16-bit types) or 32 (8-bit types), sm_80 and newer.
#define EXL_MMA(name, shape_and_types, constraint, type)                                                      \
    EXL_DEVICE void name(type(&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {                       \
        asm volatile("mma.sync.aligned." shape_and_types                                                      \
                     " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "                                        \
                     "{%0, %1, %2, %3};"                                                                      \
                     : "+" constraint(c[0]), "+" constraint(c[1]), "+" constraint(c[2]), "+" constraint(c[3]) \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                     \
    }
#if EXL_SM != 75
EXL_MMA(mma_f16, "m16n8k16.row.col.f32.f16.f16.f32", "f", float)
EXL_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32", "f", float)
EXL_MMA(mma_s8, "m16n8k32.row.col.s32.s8.s8.s32", "r", int32_t)
EXL_MMA(mma_u8s8, "m16n8k32.row.col.s32.u8.s8.s32", "r", int32_t)
#else
EXL_DEVICE void mma_f16_k8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(b));
}
EXL_DEVICE void mma_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_f16_k8(c, a[0], a[1], b[0]);
    mma_f16_k8(c, a[2], a[3], b[1]);
}
EXL_DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    shuffled::multiply<shuffled::BFloat16>(c, a, b);
}
// c (8, 8) += a (8, 16) x b (16, 8)
EXL_DEVICE void mma_s8_k16(int32_t& c0, int32_t& c1, uint32_t a, uint32_t b) {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+r"(c0), "+r"(c1)
                 : "r"(a), "r"(b));
}
EXL_DEVICE void mma_u8s8_k16(int32_t& c0, int32_t& c1, uint32_t a, uint32_t b) {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+r"(c0), "+r"(c1)
                 : "r"(a), "r"(b));
}
EXL_DEVICE void mma_s8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    for (int half_k = 0; half_k < 2; half_k++)
        for (int rows = 0; rows < 2; rows++) mma_s8_k16(c[2 * rows], c[2 * rows + 1], a[2 * half_k + rows], b[half_k]);
}
EXL_DEVICE void mma_u8s8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    for (int half_k = 0; half_k < 2; half_k++)
        for (int rows = 0; rows < 2; rows++)
            mma_u8s8_k16(c[2 * rows], c[2 * rows + 1], a[2 * half_k + rows], b[half_k]);
}
#endif
#undef EXL_MMA

}  // namespace ptx

EXL_DEVICE void mma_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { ptx::mma_f16(c, a, b); }
EXL_DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { ptx::mma_bf16(c, a, b); }
EXL_DEVICE void mma_s8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { ptx::mma_s8(c, a, b); }
EXL_DEVICE void mma_u8s8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { ptx::mma_u8s8(c, a, b); }

#elif defined(EXL_EMU)

EXL_DEVICE void mma_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulator::matrix_multiply("mma_f16", emulator::multiply_f16, c, a, b);
}
EXL_DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulator::matrix_multiply("mma_bf16", emulator::multiply_bf16, c, a, b);
}
EXL_DEVICE void mma_s8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulator::matrix_multiply("mma_s8", emulator::multiply_s8, c, a, b);
}
EXL_DEVICE void mma_u8s8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulator::matrix_multiply("mma_u8s8", emulator::multiply_u8s8, c, a, b);
}

#else

EXL_DEVICE void mma_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    shuffled::multiply<shuffled::Half>(c, a, b);
}
EXL_DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    shuffled::multiply<shuffled::BFloat16>(c, a, b);
}
EXL_DEVICE void mma_s8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    shuffled::multiply<shuffled::SignedBytes>(c, a, b);
}
EXL_DEVICE void mma_u8s8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    shuffled::multiply<shuffled::UnsignedBytes>(c, a, b);
}

#endif

}  // namespace exl
