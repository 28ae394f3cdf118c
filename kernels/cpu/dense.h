// y (M, 16) = activations (M, K) x one block of 16 dense weight rows, accumulated in fp32.
//
// f32, f16: block = [K][16] values, activations fp32.   bf16: block = [K / 2][16][2] values, the operand order of
// vdpbf16ps and of an AMX B tile; activations are bf16 where those instructions are used, fp32 elsewhere.
// Two sums (even and odd steps of k) hide the latency of the multiply-add; they are added at the end, for every M.
#pragma once

#include "group_affine.h"

namespace EXL_ISA {

// The type of activations that a dense weight reads at this level.
constexpr ActivationType dense_activations(DenseType type) {
    return EXL_LEVEL >= 3 && type == DenseType::bf16 ? ActivationType::bf16 : ActivationType::f32;
}

template <DenseType type> inline f32v load_column(const uint8_t* block, int k) {
    if constexpr (type == DenseType::f32) return f_load(reinterpret_cast<const float*>(block) + 16 * k);
    return f_load_half(reinterpret_cast<const uint16_t*>(block) + 16 * k);
}

template <DenseType type, int M>
void dense_rows(const Weight& w, const uint8_t* block, const Rows& rows, int first, float* y) {
    (void)w;
    f32v even[M], odd[M];
    const uint8_t* row[M];
    for (int m = 0; m < M; ++m) {
        even[m] = odd[m] = f_zero();
        row[m] = rows[first + m].base;
    }
    const auto activation = [&](int m, int k) { return f_set(reinterpret_cast<const float*>(row[m])[k]); };
    for (int k = 0; k < rows.k; k += 2) {
        if constexpr (type == DenseType::bf16) {
#if EXL_LEVEL >= 3
            const __m512bh pair = (__m512bh)i_load(block + 32 * k);
            f32v* sum = k & 2 ? odd : even;
            for (int m = 0; m < M; ++m) {
                int32_t a;
                __builtin_memcpy(&a, row[m] + 2 * k, 4);
                sum[m] = _mm512_dpbf16_ps(sum[m], pair, (__m512bh)i_set(a));
            }
#else
            const i32v pair = i_load(block + 32 * k);
            const f32v w0 = f_bits(i_shl<16>(pair)), w1 = f_bits(i_and(pair, i_set(int32_t(0xffff0000u))));
            for (int m = 0; m < M; ++m) even[m] = f_fma(w0, activation(m, k), even[m]);
            for (int m = 0; m < M; ++m) odd[m] = f_fma(w1, activation(m, k + 1), odd[m]);
#endif
        } else {
            if (k % 16 == 0) __builtin_prefetch(block + (type == DenseType::f32 ? 64 : 32) * k + prefetch_distance);
            const f32v w0 = load_column<type>(block, k), w1 = load_column<type>(block, k + 1);
            for (int m = 0; m < M; ++m) even[m] = f_fma(w0, activation(m, k), even[m]);
            for (int m = 0; m < M; ++m) odd[m] = f_fma(w1, activation(m, k + 1), odd[m]);
        }
    }
    for (int m = 0; m < M; ++m) f_store(y + 16 * m, f_add(even[m], odd[m]));
}

template <DenseType type>
void dense_multiply(const Weight& w, const uint8_t* block, const Rows& rows, int first, int count, float* y) {
    int done = 0;
    for (; count - done >= 8; done += 8) dense_rows<type, 8>(w, block, rows, first + done, y + 16 * done);
    for (; count - done >= 4; done += 4) dense_rows<type, 4>(w, block, rows, first + done, y + 16 * done);
    for (; count - done >= 1; done += 1) dense_rows<type, 1>(w, block, rows, first + done, y + 16 * done);
}

}  // namespace EXL_ISA
